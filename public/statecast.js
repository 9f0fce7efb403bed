// statecast.js: keeps the server's document current in this page. Copy it into yours; it needs nothing else.
//
//   const statecast = new Statecast('/events')                        // or '/events/kitchen', or another origin's
//   statecast.on('change', ({ document, patch, id }) => { ... })      // the document now; no patch: it is new as a whole
//   statecast.on('state', ({ state, reason, retryAt }) => { ... })    // connecting, open, lost, waiting or closed
//   statecast.on('chat', ({ name, data, id }) => { ... })             // a one-off event called chat; data is its text
//   statecast.on('event', ({ name, data, id }) => { ... })            // every event that is listened to, heartbeats too
//
// `on` returns a function that takes the listener off. Names for 'event' alone are an option, and the only way to one-off
// events called change, state or event: new Statecast('/events', { events: ['chat', 'alert'], withCredentials: false }).
// Properties: document (undefined until the first `init`; null for an absent topic), state, reason, retryAt (Unix ms while
// waiting, else null), lastEventId ('' for none), hello (the last one, or null). Methods: close(), for good; reconnect(reason).
// The next update changes the document in place: copy what you keep (structuredClone), and do not write to it.
// Works as <script src="statecast.js"> and as a module (import './statecast.js'); both define the global Statecast.
{
  // Beyond two heartbeats, for a slow network.
  const SLACK_MS = 2_000;
  // A try without an answer is given up after this. Longer than the browser may wait between its own tries: a stopping
  // server spreads its clients over up to 30 s with `retry:`, which a script cannot read.
  const ANSWER_MS = 40_000;
  // Our own tries: the longest wait doubles from the first to the last, the wait itself is random.
  const SHORTEST_WAIT_MS = 500;
  const FIRST_WAIT_MS = 1_000;
  const LONGEST_WAIT_MS = 30_000;

  // What `hello` says of how a connection begins.
  const REASONS = {
    first: 'the server sent the whole document',
    known: 'the server sent what was missed',
    gap: 'more was missed than the server keeps, so it sent the whole document',
    restart: 'the server was restarted and sent the whole document',
    lagged: 'this page was too slow, so the server sent the whole document',
  };

  // Told by this script, not heard from the EventSource.
  const OWN_NAMES = new Set(['change', 'state', 'event']);

  const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

  globalThis.Statecast = class Statecast {
    #url;
    #withCredentials;
    #names = new Set(['open', 'error', 'hello', 'init', 'update', 'heartbeat']);
    #listeners = new Map();
    #closing = new AbortController();

    #state = 'closed';
    #reason = '';
    #retryAt = null;
    #hello = null;
    #document;
    // Moves only after the document has: it names what the document holds. Empty while that is nothing.
    #lastEventId = '';
    // From the start of a connection until `init`, or until `hello` says that none will come.
    #expectsInit = true;
    #source = null;
    #heardAt = 0;
    #tries = 0;
    // The next try while waiting, else the next look at the silence.
    #timer;

    constructor(url = '/events', { events = ['message'], withCredentials = false } = {}) {
      this.#url = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
      // An id without its document would be answered with changes to a document that is not here.
      const query = this.#url.searchParams;
      for (const name of ['lastEventId', 'last_event_id']) if (query.has(name)) query.delete(name);
      this.#withCredentials = withCredentials;
      for (const name of events) this.#names.add(name);
      const { document, addEventListener } = globalThis;
      const options = { signal: this.#closing.signal };
      // A page kept for the back button would hold a connection that nobody reads.
      addEventListener?.('pagehide', () => this.#end('the page was left'), options);
      addEventListener?.('pageshow', ({ persisted }) => persisted && this.#connect('the page is back'), options);
      addEventListener?.('online', () => this.#hurry(), options);
      document?.addEventListener('visibilitychange', () => document.hidden || this.#hurry(), options);
      this.#connect('the first try');
    }

    get document() { return this.#document; }
    get state() { return this.#state; }
    get reason() { return this.#reason; }
    get retryAt() { return this.#retryAt; }
    get lastEventId() { return this.#lastEventId; }
    get hello() { return this.#hello; }

    on(name, listener) {
      if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
      this.#listeners.get(name).add(listener);
      if (!OWN_NAMES.has(name) && !this.#names.has(name)) {
        this.#names.add(name);
        this.#source?.addEventListener(name, this.#hear);
      }
      return () => this.#listeners.get(name).delete(listener);
    }

    close() {
      this.#closing.abort();
      this.#end('closed by this page');
    }

    // Drops the connection and tries again after a random while, longer each time until a connection lasts.
    reconnect(reason = 'asked for by this page') {
      if (this.#state === 'closed') return;
      this.#drop();
      const longest = Math.min(FIRST_WAIT_MS * 2 ** this.#tries++, LONGEST_WAIT_MS);
      const wait = SHORTEST_WAIT_MS + Math.random() * (longest - SHORTEST_WAIT_MS);
      this.#timer = setTimeout(() => this.#connect(reason), wait);
      this.#become('waiting', reason, Date.now() + wait);
    }

    // `patch` applied to `target` as RFC 7396 says, in place where both are objects.
    static merge(target, patch) {
      if (!isObject(patch)) return patch;
      const result = isObject(target) ? target : {};
      for (const key of Object.keys(patch)) {
        // Own keys only: an inherited `constructor` is not the document's, and must not be merged into.
        const value = Statecast.merge(Object.hasOwn(result, key) ? result[key] : undefined, patch[key]);
        if (value === null) delete result[key];
        else if (key !== '__proto__') result[key] = value;
        // Assigned, it would become the prototype and the key would be lost.
        else Object.defineProperty(result, key, { value, writable: true, enumerable: true, configurable: true });
      }
      return result;
    }

    #connect(reason) {
      this.#drop();
      const url = new URL(this.#url);
      if (this.#lastEventId) {
        // Appended, because `searchParams` would spell the rest of the query anew.
        url.search += `${url.search ? '&' : '?'}lastEventId=${encodeURIComponent(this.#lastEventId)}`;
      }
      this.#source = new EventSource(url, { withCredentials: this.#withCredentials });
      for (const name of this.#names) this.#source.addEventListener(name, this.#hear);
      this.#heardAt = Date.now();
      this.#become('connecting', reason);
      this.#watch();
    }

    #end(reason) {
      this.#drop();
      this.#become('closed', reason);
    }

    #drop() {
      clearTimeout(this.#timer);
      this.#source?.close();
      this.#source = null;
    }

    #hear = (event) => {
      if (event.target !== this.#source) return;
      this.#heardAt = Date.now();
      if (event.type === 'open') this.#opened();
      else if (event.type === 'error') this.#failed();
      else this.#take(event);
    };

    // Each time the browser got an answer, also on its own second try: `hello` comes next.
    #opened() {
      this.#expectsInit = true;
      this.#hello = null;
      this.#become('open', 'the server answered');
      this.#watch();
    }

    #failed() {
      if (this.#source.readyState === EventSource.CLOSED) {
        // The browser tries again after a broken connection, but never after an answer it cannot use.
        this.reconnect('the server refused, or what answered is no event stream');
      } else if (this.#state !== 'lost') {
        const what = this.#state === 'open' ? 'the connection ended' : 'nobody answers';
        this.#become('lost', `${what}; the browser keeps trying`);
        this.#watch();
      }
    }

    #take({ type: name, data, lastEventId: id }) {
      let change;
      try {
        change = this.#apply(name, data);
      } catch (error) {
        this.#lastEventId = '';
        return this.reconnect(`asking for the document anew, because of this: ${error.message}`);
      }
      // A heartbeat's too: the browser repeats the last id there, also that of an event nobody here listens to.
      if (id && !this.#expectsInit) this.#lastEventId = id;
      this.#tell('event', { name, data, id });
      if (!OWN_NAMES.has(name)) this.#tell(name, { name, data, id });
      if (change) this.#tell('change', { document: this.#document, patch: change.patch, id });
    }

    // Throws where the document would be wrong, or not known to be right, afterwards.
    #apply(name, data) {
      if (name === 'hello') {
        const hello = JSON.parse(data);
        this.#expectsInit = hello.resume !== 'replay' || !this.#lastEventId;
        this.#hello = hello;
        this.#become('open', REASONS[hello.reason] ?? 'the server answered');
        this.#watch();
      } else if (name === 'init') {
        this.#document = JSON.parse(data);
        this.#lastEventId = '';
        this.#expectsInit = false;
        return {};
      } else if (name === 'update') {
        if (this.#expectsInit) throw new Error('an update came before any init');
        const patch = JSON.parse(data);
        this.#document = Statecast.merge(this.#document, patch);
        this.#tries = 0;
        return { patch };
      } else if (name === 'heartbeat') {
        // Not earlier: a server that says hello and then goes wrong each time is not to be asked each second.
        this.#tries = 0;
      }
    }

    // One timer, not one an event: there may be thousands a second.
    #watch() {
      clearTimeout(this.#timer);
      if (!this.#source) return;
      const isGreeted = this.#state === 'open' && this.#hello;
      const limit = isGreeted ? (2 * this.#hello.heartbeat_ms || Infinity) + SLACK_MS : ANSWER_MS;
      // Either way: a clock that was set costs one needless connection at most.
      const silence = Math.abs(Date.now() - this.#heardAt);
      if (silence > limit) this.reconnect(`nothing was heard for ${Math.round(silence / 1000)} s`);
      else this.#timer = setTimeout(() => this.#watch(), Math.min(limit - silence + 1, ANSWER_MS));
    }

    // The network is back, or someone looks: no time to wait, be it our wait or the browser's.
    #hurry() {
      if (this.#state === 'waiting' || this.#state === 'lost') this.#connect(this.#reason);
      else this.#watch();
    }

    #become(state, reason, retryAt = null) {
      if (state === this.#state && reason === this.#reason && retryAt === this.#retryAt) return;
      [this.#state, this.#reason, this.#retryAt] = [state, reason, retryAt];
      this.#tell('state', { state, reason, retryAt });
    }

    #tell(name, what) {
      for (const listener of this.#listeners.get(name) ?? []) {
        // One that fails must not keep the next from hearing.
        try { listener(what); } catch (error) { reportError(error); }
      }
    }
  };
}
