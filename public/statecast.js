// statecast.js: keeps the server's document current in this page. Copy it into yours; it needs nothing else.
// A classic script (<script src="statecast.js">) and a module (import './statecast.js'); either defines Statecast.
//
//   const statecast = new Statecast('/events')                    // or '/events/kitchen', or another origin's
//   statecast.on('change', ({ document, patch, id }) => { ... })  // no patch: the document is new as a whole
//   statecast.on('state', ({ state, reason, retryAt }) => { ... })
//   statecast.on('chat', ({ name, data, id }) => { ... })         // a one-off event called chat
//   statecast.on('event', ({ name, data, id }) => { ... })        // every event that is listened to, heartbeats too
//
// `on` returns a function that takes the listener off. Options: { events: ['message'], withCredentials: false, share: true };
// `events` names one-off events for 'event' alone. With `share`, all tabs of a stream have one connection (HTTP/1.1 allows
// six): one leads and tells the others, and another takes over when it closes or freezes; needs HTTPS or localhost.
// To read: document (undefined until `init`, null for an absent topic; changed in place: copy what you keep), state
// (connecting, open, lost: the browser tries again, waiting: this script will, closed), reason, retryAt (Unix ms while
// waiting, or null), lastEventId ('' for none), hello (the last, or null), leads. To call: reconnect(reason), close().
{
const LEAST_SILENCE_MS = 2_000; // Two heartbeats, but not less.
// A try without an answer is given up after this. A stopping server may tell the browser to wait 30 s, unseen by scripts.
const ANSWER_MS = 40_000;
const PROBE_MS = 5_000;
const PATIENCE_MS = 1_000; // A tab waits one to two of these longer for a word of the one that leads.
// Our own tries: the longest wait doubles from the first to the last, the wait itself is random.
const [SHORTEST_WAIT_MS, FIRST_WAIT_MS, LONGEST_WAIT_MS] = [500, 1_000, 30_000];

// What `hello` says of how a connection begins.
const REASONS = {
	first: 'the server sent the whole document',
	known: 'the server sent what was missed',
	gap: 'more was missed than the server keeps, so it sent the whole document',
	restart: 'the server was restarted and sent the whole document',
	lagged: 'this page was too slow, so the server sent the whole document',
};
const OWN_NAMES = new Set(['change', 'state', 'event']); // Told by this script, not heard from the EventSource.
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const { compare: compareIds } = new Intl.Collator('en', { numeric: true }); // <unix ms>-<sequence>

globalThis.Statecast = class Statecast {
	document; state = 'closed'; reason = ''; retryAt = null; hello = null; leads = false;
	// Moves only after the document has: it names what the document holds. Empty while that is nothing.
	lastEventId = '';
	#url; #options; #source = null; #heardAt = 0; #tries = 0;
	#expectsInit = true; // From the start of a connection until `init`, or until `hello` says that none will come.
	#timer; // The next try while waiting, else the next look at the silence.
	#listeners = new Map();
	#names = new Set(['open', 'error', 'hello', 'init', 'update', 'heartbeat']);
	#allNames = new Set(this.#names); // The other tabs' too, because any of them may come to lead.
	#channel = null; // To the other tabs; null while closed, and where nothing is shared.
	#lease = null; // A place in the queue for the lock that makes a tab lead. Aborted, it leaves the queue or lets go.
	#hasAsked = false;
	#closing = new AbortController();

	constructor(url = '/events', { events = ['message'], withCredentials = false, share = true } = {}) {
		const { document, addEventListener, location, navigator, BroadcastChannel } = globalThis;
		this.#url = new URL(url, document?.baseURI ?? location?.href);
		// An id without its document would be answered with changes to a document that is not here.
		const query = this.#url.searchParams;
		for (const name of ['lastEventId', 'last_event_id']) if (query.has(name)) query.delete(name);
		this.#options = { withCredentials, isShared: Boolean(share && navigator?.locks && BroadcastChannel) };
		for (const name of events) this.#listenTo(name, this.#names.add(name));
		const options = { signal: this.#closing.signal };
		// A page kept for the back button would hold a connection that nobody reads.
		addEventListener?.('pagehide', () => this.#end('the page was left'), options);
		addEventListener?.('pageshow', () => this.#join('the page is back'), options);
		addEventListener?.('online', () => this.#hurry(), options);
		document?.addEventListener('visibilitychange', () => document.hidden || this.#hurry(), options);
		this.#join('the first try');
	}

	on(name, listener) {
		if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
		this.#listeners.get(name).add(listener);
		if (!OWN_NAMES.has(name)) this.#listenTo(name, this.#names.add(name));
		return () => this.#listeners.get(name).delete(listener);
	}

	close() {
		this.#closing.abort();
		this.#end('closed by this page');
	}

	// Tries again after a random while, longer each time until a connection lasts.
	reconnect(reason = 'asked for by this page', leastWait = 0) {
		if (!this.leads) return this.#post({ kind: 'reconnect', reason });
		this.#drop();
		const longest = Math.min(FIRST_WAIT_MS * 2 ** this.#tries++, LONGEST_WAIT_MS);
		const wait = Math.max(leastWait, SHORTEST_WAIT_MS + Math.random() * (longest - SHORTEST_WAIT_MS));
		this.#timer = setTimeout(() => this.#connect(reason), wait);
		this.#become('waiting', reason, Date.now() + wait);
	}

	// `patch` applied to `target` as RFC 7396 says, in place where both are objects.
	static merge(target, patch) {
		if (!isObject(patch)) return patch;
		const result = isObject(target) ? target : {};
		for (const key of Object.keys(patch)) {
			// Own keys only, no inherited `constructor`.
			const value = Statecast.merge(Object.hasOwn(result, key) ? result[key] : undefined, patch[key]);
			if (value === null) delete result[key];
			// Assigned, `__proto__` would become the prototype and the key would be lost.
			else Object.defineProperty(result, key, { value, writable: true, enumerable: true, configurable: true });
		}
		return result;
	}

	// --- The tabs: one leads, the others hear from it ---

	#join(reason) {
		if (this.state !== 'closed') return;
		if (!this.#options.isShared) return this.#connect(reason);
		this.#channel = new BroadcastChannel(`statecast ${this.#options.withCredentials} ${this.#url}`);
		this.#channel.onmessage = ({ data }) => this.#hearTab(data);
		this.#queue(reason);
	}

	#queue(reason, steal = false) {
		this.#drop();
		this.#lease?.abort();
		const { signal } = this.#lease = new AbortController();
		[this.leads, this.#heardAt] = [false, Date.now()];
		this.#become('connecting', reason);
		const lead = () => signal.aborted || new Promise((release) => {
			signal.addEventListener('abort', release);
			this.#connect(reason);
		});
		this.#ask();
		navigator.locks.request(this.#channel.name, steal ? { steal } : { signal }, lead).catch(({ name }) => {
			if (signal.aborted) return;
			if (name === 'AbortError') this.#queue('another tab took the connection over');
			else this.#connect(reason);
		});
	}

	#end(reason) {
		this.#drop();
		this.#lease?.abort();
		this.#channel?.close();
		[this.leads, this.#lease, this.#channel] = [false, null, null];
		this.#become('closed', reason);
	}

	#post(message) { this.#channel?.postMessage(message); }

	#ask() { this.#post({ kind: 'ask', names: [...this.#allNames] }, this.#hasAsked = true); }

	#listenTo(name) {
		if (this.#allNames.has(name)) return;
		this.#allNames.add(name);
		this.#source?.addEventListener(name, this.#hear);
		this.#post({ kind: 'names', names: [name] });
	}

	#hearTab({ kind, names = [], ...told }) {
		for (const name of names) this.#listenTo(name);
		if (this.leads) {
			if (kind === 'ask') this.#postState({ names: [...this.#allNames], copy: this.document, id: this.lastEventId });
			else if (kind === 'reconnect') this.reconnect(told.reason);
			else if (kind === 'hurry') this.#hurry();
		} else if (kind === 'event') {
			const { name, data, id, after } = told;
			this.#heardAt = Date.now();
			// `after` is what the leading tab had before: who is behind that asks, who is ahead has the event already.
			if (name === 'init' || after === this.lastEventId) this.#take(name, data, id);
			else if (name === 'hello' || name === 'heartbeat') this.#take(name, data, '');
			else if (!this.#hasAsked && compareIds(id, this.lastEventId) > 0) this.#ask();
		} else if (kind === 'state') {
			[this.#heardAt, this.hello] = [Date.now(), told.hello];
			this.#become(told.state, told.reason, told.retryAt);
			// One that has just begun to lead has not heard the question.
			if (this.#hasAsked && told.id === undefined) return this.#ask();
			const isNews = this.#hasAsked && told.id && told.id !== this.lastEventId;
			this.#hasAsked = false;
			if (!isNews) return;
			[this.document, this.lastEventId, this.#expectsInit] = [told.copy, told.id, false];
			this.#tell('change', { document: this.document, id: this.lastEventId });
		}
	}

	// --- The connection of the tab that leads ---

	#connect(reason) {
		this.#drop();
		this.#source = new EventSource(this.#address(), { withCredentials: this.#options.withCredentials });
		for (const name of this.#allNames) this.#source.addEventListener(name, this.#hear);
		[this.leads, this.#heardAt] = [true, Date.now()];
		this.#become('connecting', reason);
	}

	// With the id in the query: a new EventSource has no Last-Event-ID to send.
	#address() {
		const id = encodeURIComponent(this.lastEventId);
		return id ? `${this.#url}${this.#url.search ? '&' : '?'}lastEventId=${id}` : String(this.#url);
	}

	#drop() {
		clearTimeout(this.#timer);
		this.#source?.close();
		this.#source = null;
	}

	#hear = ({ target, type, data, lastEventId }) => {
		if (target !== this.#source) return;
		this.#heardAt = Date.now();
		if (type === 'open') {
			// Each time the browser got an answer, also on its own second try: `hello` comes next.
			[this.#expectsInit, this.hello] = [true, null];
			this.#become('open', 'the server answered');
		} else if (type !== 'error') this.#take(type, data, lastEventId);
		// The browser tries again after a broken connection, but never after an answer it cannot use.
		else if (target.readyState === EventSource.CLOSED) this.#probe(target);
		else if (this.state === 'open') this.#become('lost', 'the connection ended; the browser keeps trying');
		else if (this.state !== 'lost') this.#become('lost', 'nobody answers; the browser keeps trying');
	};

	// An EventSource does not say what it was answered, nor when to come back.
	async #probe(source) {
		this.#become('lost', 'the browser gave up; asking the server why');
		const credentials = this.#options.withCredentials ? 'include' : 'same-origin';
		const [cache, signal] = ['no-store', AbortSignal.timeout(PROBE_MS)];
		const answer = await fetch(this.#address(), { credentials, cache, signal }).catch(() => null);
		const [type, wait] = ['Content-Type', 'Retry-After'].map((name) => answer?.headers.get(name));
		const error = type === 'application/json' && (await answer.json().catch(() => null))?.error;
		answer?.body?.cancel().catch(() => {});
		let reason = answer ? `the server said ${answer.status}${error ? `: ${error}` : ''}` : 'nobody answers';
		if (answer?.status === 200) reason = `what answered is ${type}, and no event stream`;
		if (type?.startsWith('text/event-stream')) reason = 'the server answers again';
		if (this.#source === source) this.reconnect(reason, 1_000 * wait || 0);
	}

	#take(name, data, id) {
		const after = this.lastEventId;
		let patch;
		try {
			if (name === 'hello') {
				this.hello = JSON.parse(data);
				this.#expectsInit = this.hello.resume !== 'replay' || !after;
				this.#become('open', REASONS[this.hello.reason] ?? 'the server answered');
			} else if (name === 'init') {
				this.document = JSON.parse(data);
				[this.lastEventId, this.#expectsInit] = ['', false];
			} else if (name === 'update') {
				if (this.#expectsInit) throw new Error('an update came before any init');
				patch = JSON.parse(data);
				this.document = Statecast.merge(this.document, patch);
			}
		} catch (error) {
			// The document would be wrong, or not known to be right.
			this.lastEventId = '';
			return this.leads ? this.reconnect(`asking for the document anew: ${error.message}`) : this.#ask();
		}
		// A heartbeat's too: the browser repeats the last id there, also of an event nobody here listens to.
		if (id && !this.#expectsInit) this.lastEventId = id;
		// Not earlier: a server that says hello and then goes wrong each time is not to be asked each second.
		if (name === 'update' || name === 'heartbeat') this.#tries = 0;
		if (this.leads) this.#post({ kind: 'event', name, data, id, after });
		if (!this.#names.has(name)) return;
		this.#tell('event', { name, data, id });
		if (!OWN_NAMES.has(name)) this.#tell(name, { name, data, id });
		if (name === 'init' || name === 'update') this.#tell('change', { document: this.document, patch, id });
	}

	// One timer, not one an event: there may be thousands a second.
	#watch() {
		if (this.state === 'closed' || this.state === 'waiting' && this.leads) return;
		clearTimeout(this.#timer);
		const isGreeted = this.state === 'open' && this.hello;
		let limit = isGreeted ? Math.max(2 * this.hello.heartbeat_ms || Infinity, LEAST_SILENCE_MS) : ANSWER_MS;
		if (!this.leads) limit += PATIENCE_MS * (1 + Math.random()) + Math.max(0, this.retryAt - this.#heardAt);
		// A clock that was set costs one needless connection at most.
		const silence = Math.abs(Date.now() - this.#heardAt);
		if (silence <= limit) this.#timer = setTimeout(() => this.#watch(), Math.min(limit - silence + 1, ANSWER_MS));
		else if (!this.leads) this.#queue('the tab that had the connection does not answer', true);
		else this.reconnect(`nothing was heard for ${Math.round(silence / 1_000)} s`);
	}

	// The network is back, or someone looks: no time to wait, be it our wait or the browser's.
	#hurry() {
		if (!this.leads) this.#post({ kind: 'hurry' });
		else if (this.state === 'waiting' || this.state === 'lost') return this.#connect(this.reason);
		this.#watch();
	}

	#postState(copy) {
		const { state, reason, retryAt, hello } = this;
		if (this.leads) this.#post({ kind: 'state', state, reason, retryAt, hello, ...copy });
	}

	#become(state, reason, retryAt = null) {
		const isNews = state !== this.state || reason !== this.reason || retryAt !== this.retryAt;
		[this.state, this.reason, this.retryAt] = [state, reason, retryAt];
		this.#watch();
		this.#postState();
		if (isNews) this.#tell('state', { state, reason, retryAt });
	}

	#tell(name, what) {
		for (const listener of this.#listeners.get(name) ?? []) {
			try { listener(what); } catch (error) { reportError(error); }
		}
	}
};
}
