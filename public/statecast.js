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
const ANSWER_MS = 40_000; // Then a try is given up. A stopping server may have told the browser to wait 30 s, unseen by scripts.
const PATIENCE_MS = 1_000; // A tab waits one to two of these longer for a word of the one that leads.
const [SHORTEST_WAIT_MS, FIRST_WAIT_MS, LONGEST_WAIT_MS] = [500, 1_000, 30_000]; // Our own tries: the longest wait doubles.
const REASONS = { // What `hello` says of how a connection begins.
	first: 'the server sent the whole document',
	known: 'the server sent what was missed',
	gap: 'more was missed than the server keeps, so it sent the whole document',
	restart: 'the server was restarted and sent the whole document',
	lagged: 'this page was too slow, so the server sent the whole document',
};
const OWN_NAMES = ['change', 'state', 'event']; // Told by this script, not heard from the EventSource.
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const { compare: compareIds } = new Intl.Collator('en', { numeric: true }); // <unix ms>-<sequence>

globalThis.Statecast = class Statecast {
	document; state = 'closed'; reason = ''; retryAt = null; hello = null; leads = false;
	lastEventId = ''; // Moves after the document has. Empty while an update would not fit it.
	#url; #options; #lock; #names; #allNames; #source = null; #heardAt; #tries = 0; #hasAsked = false;
	#timer; // The next try while waiting, else the next look at the silence.
	#channel = null; // To the other tabs; null while closed, and where nothing is shared.
	#lease = null; // A place in the queue for the lock that makes a tab lead. Aborted, it leaves the queue or lets go.
	#listeners = new EventTarget(); #closing = new AbortController();

	constructor(url = '/events', { events = ['message'], withCredentials = false, share = true } = {}) {
		this.#url = new URL(url, document.baseURI);
		this.#options = { withCredentials, credentials: withCredentials ? 'include' : 'same-origin', cache: 'no-store' };
		this.#lock = share && navigator.locks ? `statecast ${withCredentials} ${this.#url}` : null;
		this.#names = new Set(['error', 'hello', 'init', 'update', 'heartbeat', ...events]);
		this.#allNames = new Set(this.#names); // The other tabs' too, because any of them may come to lead.
		const options = { signal: this.#closing.signal };
		addEventListener('pagehide', () => this.#end('the page was left'), options); // It may be kept for the back button.
		addEventListener('pageshow', () => this.state !== 'closed' || this.#join('the page is back'), options);
		addEventListener('online', () => this.#hurry(), options);
		document.addEventListener('visibilitychange', () => document.hidden || this.#hurry(), options);
		this.#join('the first try');
	}

	on(name, listener) {
		const hear = ({ detail }) => listener(detail);
		this.#listeners.addEventListener(name, hear);
		this.#names.add(name);
		if (!OWN_NAMES.includes(name)) this.#listenTo(name);
		return () => this.#listeners.removeEventListener(name, hear);
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
		for (const [key, change] of Object.entries(patch)) {
			// Own keys only, no inherited `constructor`; and assigned, `__proto__` would become the prototype.
			const value = Statecast.merge(Object.hasOwn(result, key) ? result[key] : undefined, change);
			if (value === null) delete result[key];
			else Object.defineProperty(result, key, { value, writable: true, enumerable: true, configurable: true });
		}
		return result;
	}

	// --- The tabs: one leads, the others hear from it ---
	#join(reason, steal = false) {
		this.#drop();
		if (!this.#lock) return this.#connect(reason);
		this.#channel ??= new BroadcastChannel(this.#lock);
		this.#channel.onmessage = ({ data }) => this.#hearTab(data);
		this.#lease?.abort();
		const { signal } = this.#lease = new AbortController();
		[this.leads, this.#heardAt] = [false, Date.now()];
		this.#become('connecting', reason);
		this.#ask();
		const lead = () => signal.aborted || new Promise((release) => {
			signal.addEventListener('abort', release);
			this.#connect(reason);
		});
		navigator.locks.request(this.#lock, steal ? { steal } : { signal }, lead).catch(({ name }) => {
			if (signal.aborted) return;
			if (name === 'AbortError') this.#join('another tab took the connection over');
			else this.#connect(reason);
		});
	}

	#end(reason) {
		this.#drop();
		this.#lease?.abort();
		this.#channel?.close();
		[this.leads, this.#channel] = [false, null];
		this.#become('closed', reason);
	}

	#tell(name, detail) { this.#listeners.dispatchEvent(new CustomEvent(name, { detail })); }
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
			if (kind === 'reconnect') this.reconnect(told.reason);
			else if (kind === 'hurry') this.#hurry();
			if (kind !== 'ask') return;
			this.#post({ kind: 'answer', names: [...this.#allNames], document: this.document, id: this.lastEventId });
			this.#become(this.state, this.reason, this.retryAt);
		} else if (kind === 'event') {
			this.#heardAt = Date.now();
			// `after` is what the leading tab had before: who is behind that asks, who is ahead has the event already.
			if (told.name === 'init' || told.after === this.lastEventId) this.#take(told.name, told.data, told.id);
			else if (!this.#hasAsked && compareIds(told.id, this.lastEventId) > 0) this.#ask();
		} else if (kind === 'state') {
			[this.#heardAt, this.hello] = [Date.now(), told.hello];
			this.#become(told.state, told.reason, told.retryAt);
			if (this.#hasAsked) this.#ask(); // One that has just begun to lead has not heard the question.
		} else if (kind === 'answer' && this.#hasAsked) {
			this.#hasAsked = false;
			if (!told.id || told.id === this.lastEventId) return;
			[this.document, this.lastEventId] = [told.document, told.id];
			this.#tell('change', { document: this.document, id: this.lastEventId });
		}
	}

	// --- The connection of the tab that leads ---
	#connect(reason) {
		this.#drop();
		// A new EventSource has no Last-Event-ID to send. Nor may it ask for what follows a document that is not here.
		for (const name of ['lastEventId', 'last_event_id']) this.#url.searchParams.delete(name);
		if (this.lastEventId) this.#url.searchParams.set('lastEventId', this.lastEventId);
		this.#source = new EventSource(this.#url, this.#options);
		for (const name of this.#allNames) this.#source.addEventListener(name, this.#hear);
		[this.leads, this.#heardAt] = [true, Date.now()];
		this.#become('connecting', reason);
	}

	#drop() {
		clearTimeout(this.#timer);
		this.#source?.close();
		this.#source = null;
	}

	#hear = ({ type, data, lastEventId }) => {
		this.#heardAt = Date.now();
		if (type !== 'error') this.#take(type, data, lastEventId);
		else if (this.#source.readyState === EventSource.CLOSED) this.#probe(this.#source);
		else this.#become('lost', `${this.state === 'open' ? 'the stream ended' : 'nobody answers'}; the browser keeps trying`);
	};

	// The browser gives up at an answer it cannot use, and does not say what that was, nor when to come back.
	async #probe(source) {
		this.#become('lost', 'the browser gave up; asking the server why');
		const answer = await fetch(this.#url, { ...this.#options, signal: AbortSignal.timeout(5_000) }).catch(() => null);
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
				if (this.hello.resume !== 'replay') this.lastEventId = ''; // An init comes, and nothing fits before.
				this.#become('open', REASONS[this.hello.reason] ?? 'the server answered');
			} else if (name === 'init') [this.document, this.lastEventId] = [JSON.parse(data), id];
			else if (name === 'update') {
				if (!after) throw new Error('an update came before any init');
				patch = JSON.parse(data);
				this.document = Statecast.merge(this.document, patch);
			}
		} catch (error) {
			this.lastEventId = ''; // The document would be wrong, or not known to be right.
			return this.reconnect(`asking for the document anew: ${error.message}`);
		}
		if (id && this.lastEventId) this.lastEventId = id; // A heartbeat repeats the last, also of an event nobody listens to.
		if (name === 'update' || name === 'heartbeat') this.#tries = 0; // Not at hello: it may go wrong next, each time.
		if (this.leads) this.#post({ kind: 'event', name, data, id, after });
		if (!this.#names.has(name)) return;
		this.#tell('event', { name, data, id });
		if (!OWN_NAMES.includes(name)) this.#tell(name, { name, data, id });
		if (name === 'init' || name === 'update') this.#tell('change', { document: this.document, patch, id });
	}

	// One timer, not one an event: there may be thousands a second.
	#watch() {
		if (this.state === 'closed' || this.state === 'waiting' && this.leads) return;
		clearTimeout(this.#timer);
		let limit = this.state === 'open' ? Math.max(2 * this.hello.heartbeat_ms || Infinity, LEAST_SILENCE_MS) : ANSWER_MS;
		if (!this.leads) limit += PATIENCE_MS * (1 + Math.random()) + Math.max(0, this.retryAt - this.#heardAt);
		const silence = Math.abs(Date.now() - this.#heardAt); // A clock that was set costs one needless connection.
		if (silence <= limit) this.#timer = setTimeout(() => this.#watch(), Math.min(limit - silence + 1, ANSWER_MS));
		else if (!this.leads) this.#join('the tab that had the connection does not answer', true);
		else this.reconnect(`nothing was heard for ${Math.round(silence / 1_000)} s`);
	}

	// The network is back, or someone looks: no time to wait, be it our wait or the browser's.
	#hurry() {
		if (!this.leads) this.#post({ kind: 'hurry' });
		else if (this.state === 'waiting' || this.state === 'lost') return this.#connect(this.reason);
		this.#watch();
	}

	#become(state, reason, retryAt = null) {
		const isNews = state !== this.state || reason !== this.reason || retryAt !== this.retryAt;
		[this.state, this.reason, this.retryAt] = [state, reason, retryAt];
		this.#watch();
		if (this.leads) this.#post({ kind: 'state', state, reason, retryAt, hello: this.hello });
		if (isNews) this.#tell('state', { state, reason, retryAt });
	}
};
}
