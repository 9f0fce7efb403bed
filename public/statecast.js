// statecast.js: keeps the server's document current in this page. Copy it into yours; it needs nothing else.
//
//   const statecast = new Statecast('/events'); // or '/events/kitchen', or another origin's
//   statecast.on('change', ({ document }) => console.log(document));
//
// A classic script, <script src="statecast.js"></script>, because what exports cannot be one. In a module say
// import { Statecast } from './statecast.mjs', which is one line; or import this, for globalThis.Statecast.
//
// All tabs of a stream share one connection, because a browser opens six to a server over HTTP/1.1. One tab
// leads and tells the others; when it is closed, crashes or falls silent, another one takes over.

/* The types, as TypeScript writes them:
declare class Statecast {
  constructor(url?: string | URL, options?: {
    events?: string[]; // One-off events to hear as 'event', beside those given to `on`. Default: ['message']
    withCredentials?: boolean; // Send cookies to another origin, too: see below. Default: false
    share?: boolean; // All tabs share a connection. Default: true
  });
  readonly document: any; // First undefined; null: an absent topic. Changes in place: copy what you keep.
  readonly state: 'connecting' | 'open' | 'lost' | 'waiting' | 'closed'; // lost: the browser tries again.
  readonly reason: string; // Why, in words.
  readonly retryAt: number | null; // When this script tries again, while it is waiting: Unix time in ms.
  readonly lastEventId: string; // '' for none.
  readonly hello: { client: number, heartbeat_ms: number, resume: string, reason: string } | null; // The last
  readonly leads: boolean; // This tab has the connection.
  // `on` returns a function that takes the listener off. Without a patch the document is new as a whole.
  on(name: 'change', listener: (detail: { document: any, patch?: any, id: string }) => void): () => void;
  on(name: 'state', listener: (detail: Pick<Statecast, 'state' | 'reason' | 'retryAt'>) => void): () => void;
  // Events of that name; with 'event', all that are listened to, `hello` and heartbeats too.
  on(name: string, listener: (detail: { name: string, data: string, id: string }) => void): () => void;
  reconnect(reason?: string): void; // After a random while, longer each time until a connection lasts.
  close(): void;
  static merge(target: any, patch: any): any; // RFC 7396, in place where both are objects.
}
`withCredentials` is for a proxy that wants cookies; statecast reads none, its token is in the URL: ?token=...
The answer must list this page's origin (--allow-origin) and say Access-Control-Allow-Credentials: true. */
{
const DAY_MS = 86_400_000;
const LEAST_SILENCE_MS = 2_000; // Two heartbeats, but not less.
const ANSWER_MS = 40_000; // Then a try is given up. A stopping server can have told the browser to wait 30 s.
const SLOW_MS = 5_000; // Then the reason says what a try may be waiting for.
const SHORTEST_WAIT_MS = 500; // Our own tries wait at random: at least that,
const LONGEST_WAIT_MS = 30_000; // and at most 1 s, then 2 s, 4 s, and so on up to that.
// Between tabs, one to two times that long, at random, so that one of them is the first.
const JOIN_MS = 100; // A new tab without Web Locks waits so long for one that leads, and then leads itself.
const QUIET_MS = 5_000; // A tab that heard nothing asks the one that leads for a sign of life,
const PATIENCE_MS = 2_000; // and then takes over.
const REASONS = new Map([ // What `hello` says of how a connection begins.
  ['first', 'the server sent the whole document'],
  ['known', 'the server sent what was missed'],
  ['gap', 'more was missed than the server keeps, so it sent the whole document'],
  ['restart', 'the server was restarted and sent the whole document'],
  ['lagged', 'this page was too slow, so the server sent the whole document'],
]);
const SLOW = 'no answer yet; perhaps other tabs have all six connections that a browser opens to a server';
const OWN_NAMES = ['change', 'state', 'event']; // Told by this script, not heard from the EventSource.
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const { compare: compareIds } = new Intl.Collator('en', { numeric: true }); // <unix ms>-<sequence>
const oneToTwo = (ms) => ms * (1 + Math.random());
// What a timer can wait: not NaN, not negative, a day at most. From 2^31 ms on, setTimeout does not wait.
const bounded = (ms) => (ms > 0 ? Math.min(ms, DAY_MS) : 0);

// How long an answer asks to wait: seconds, or a date by the server's clock, which may differ from ours.
function retryAfter(headers) {
  const text = headers.get('Retry-After') ?? '';
  if (/^\d+$/.test(text)) return bounded(1_000 * Number(text));
  // Date.parse takes much for a date. HTTP's begin with a weekday and are GMT; one form does not say so.
  if (!/^[A-Z][a-z]{2}/.test(text)) return 0;
  const then = Date.parse(text.endsWith('GMT') ? text : `${text} GMT`);
  const now = Date.parse(headers.get('Date') ?? '');
  return bounded(then - (Number.isNaN(now) ? Date.now() : now));
}

globalThis.Statecast = class Statecast {
  document;
  state = 'closed';
  reason = '';
  retryAt = null;
  lastEventId = ''; // Moves after the document has. Empty while an update would not fit it.
  hello = null;
  leads = false;
  #url;
  #nobody = 'nobody answers'; // Why nothing came. Of another origin the browser does not say more.
  #withCredentials;
  #names; // Events that this page listens to.
  #allNames; // Those of the other tabs, too, because any of them may come to lead.
  #listeners = new EventTarget();
  #closing = new AbortController();
  #timer; // The next try while waiting, else the next look at the silence.
  #source = null; // The EventSource, in the tab that leads.
  #heardAt; // When it said something, or was made.
  #tries = 0; // Since a connection has lasted.
  #sharedName; // Of the tabs' channel and lock; null where nothing is shared.
  #channel = null; // To the other tabs; null while closed.
  #locks = navigator.locks; // Undefined on plain http, localhost aside.
  #lease = null; // A place in the queue for the lock. Aborted, it leaves the queue or lets go.
  #claim = 0; // Without locks the highest one leads. Made by this tab, or heard from the one that leads.
  #isNew = false; // Without locks: nobody has said yet that somebody leads.
  #hasAsked = false; // For the document of the tab that leads.
  #hasHeard = false; // From the tab that leads, since the last look.

  constructor(url = '/events', { events = ['message'], withCredentials = false, share = true } = {}) {
    this.#url = new URL(url, document.baseURI);
    if (this.#url.origin !== location.origin) this.#nobody += ', or --allow-origin does not list this page';
    this.#withCredentials = withCredentials;
    this.#sharedName = share ? `statecast ${withCredentials} ${this.#url}` : null;
    this.#names = new Set(['error', 'hello', 'init', 'update', 'heartbeat', ...events]);
    this.#allNames = new Set(this.#names);
    const options = { signal: this.#closing.signal };
    addEventListener('pagehide', () => this.#end('the page was left'), options); // The browser may keep it.
    addEventListener('pageshow', () => {
      if (this.state === 'closed') this.#join('the page is back');
    }, options);
    addEventListener('online', () => this.#hurry(), options);
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) this.#hurry();
    }, options);
    this.#join('the first try');
  }

  on(name, listener) {
    const hear = ({ detail }) => listener(detail);
    this.#listeners.addEventListener(name, hear);
    this.#names.add(name);
    if (!OWN_NAMES.includes(name)) this.#listenTo(name);
    return () => this.#listeners.removeEventListener(name, hear);
  }

  reconnect(reason = 'asked for by this page') {
    if (this.leads) this.#retry(reason);
    else this.#post({ kind: 'reconnect', reason });
  }

  close() {
    this.#closing.abort();
    this.#end('closed by this page');
  }

  static merge(target, patch) {
    if (!isObject(patch)) return patch;
    const whole = isObject(target) ? target : {};
    for (const [key, change] of Object.entries(patch)) {
      // Own keys only, no inherited `constructor`; and assigned, `__proto__` would become the prototype.
      const value = Statecast.merge(Object.hasOwn(whole, key) ? whole[key] : undefined, change);
      if (value === null) delete whole[key];
      else Object.defineProperty(whole, key, { value, writable: true, enumerable: true, configurable: true });
    }
    return whole;
  }

  // --- Which tab leads ---
  #join(reason, takesOver = false) {
    this.#drop();
    this.leads = false;
    if (this.#sharedName === null) return this.#connect(reason);
    this.#channel ??= new BroadcastChannel(this.#sharedName);
    this.#channel.onmessage = ({ data }) => this.#hearTab(data);
    if (this.#locks) this.#queueForLock(reason, takesOver);
    else if (takesOver) return this.#connect(reason);
    this.#isNew = !this.#locks;
    this.#ask();
    this.#become('connecting', reason);
  }

  #queueForLock(reason, steal) {
    this.#lease?.abort();
    this.#lease = new AbortController();
    const { signal } = this.#lease;
    const lead = () => new Promise((release) => {
      signal.addEventListener('abort', release);
      if (signal.aborted) release();
      else this.#connect(reason);
    });
    this.#locks.request(this.#sharedName, steal ? { steal } : { signal }, lead).catch(({ name }) => {
      if (signal.aborted) return;
      if (name === 'AbortError') return this.#join('another tab took the connection over');
      this.#locks = undefined; // This page may have none.
      this.#join(reason);
    });
  }

  #end(reason) {
    this.#drop();
    if (this.leads) this.#post({ kind: 'left' });
    this.#lease?.abort();
    this.#channel?.close();
    this.#channel = null;
    this.leads = false;
    this.#become('closed', reason);
  }

  // A tab that hears nothing asks for a sign of life, and takes over if none comes. It needs no clock.
  #watchLeader() {
    const takeOver = () => this.#join('the tab that had the connection does not answer', true);
    const unlessHeard = (action) => () => (this.#hasHeard ? this.#watchLeader() : action());
    const ask = () => {
      this.#post({ kind: 'ping' });
      this.#wait(oneToTwo(PATIENCE_MS), unlessHeard(takeOver));
    };
    this.#hasHeard = false;
    if (this.#isNew) this.#wait(oneToTwo(JOIN_MS), () => this.#connect(this.reason));
    else this.#wait(oneToTwo(QUIET_MS), unlessHeard(ask));
  }

  // --- What listeners are told, and what the tabs tell each other ---
  #tell(name, detail) { this.#listeners.dispatchEvent(new CustomEvent(name, { detail })); }
  #post(message) { this.#channel?.postMessage(message); }

  #postState() {
    const { state, reason, retryAt, hello } = this;
    if (this.leads) this.#post({ kind: 'state', state, reason, retryAt, hello, claim: this.#claim });
  }

  #ask() {
    this.#hasAsked = true;
    this.#post({ kind: 'ask', names: this.#allNames });
  }

  #listenTo(name) {
    if (this.#allNames.has(name)) return;
    this.#allNames.add(name);
    this.#source?.addEventListener(name, this.#hear);
    this.#post({ kind: 'names', names: [name] });
  }

  #hearTab({ kind, names = [], ...told }) {
    for (const name of names) this.#listenTo(name);
    if (this.leads) this.#hearAsLeader(kind, told);
    else this.#hearAsFollower(kind, told);
  }

  #hearAsLeader(kind, { reason, claim }) {
    if (kind === 'reconnect') this.#retry(reason);
    else if (kind === 'hurry') this.#hurry();
    else if (kind === 'ping') setTimeout(() => this.#postState()); // A frozen page has no timer and no news.
    else if (kind === 'ask') {
      this.#post({ kind: 'answer', names: this.#allNames, document: this.document, id: this.lastEventId });
      this.#postState();
    } else if (!this.#locks && (kind === 'state' || kind === 'event')) {
      // The sender leads, too. With locks, the browser tells the one that has lost its.
      if (claim >= this.#claim) this.#join('another tab took the connection over');
      else this.#postState();
    }
  }

  #hearAsFollower(kind, told) {
    if (['event', 'state', 'answer'].includes(kind)) this.#hasHeard = true;
    if (kind === 'event') {
      // `after` is what the leading tab had before: who is behind asks, who is ahead has the event already.
      if (told.name === 'init' || told.after === this.lastEventId) this.#take(told.name, told.data, told.id);
      else if (!this.#hasAsked && compareIds(told.id, this.lastEventId) > 0) this.#ask();
    } else if (kind === 'state') {
      this.#isNew = false;
      this.#claim = Math.max(this.#claim, told.claim);
      this.hello = told.hello;
      this.#become(told.state, told.reason, told.retryAt);
      if (this.#hasAsked) this.#ask(); // One that has just begun to lead has not heard the question.
    } else if (kind === 'answer' && this.#hasAsked) {
      this.#hasAsked = false;
      if (!told.id || told.id === this.lastEventId) return;
      this.document = told.document;
      this.lastEventId = told.id;
      this.#tell('change', { document: this.document, id: this.lastEventId });
    } else if (kind === 'left' && !this.#locks) {
      this.#join('the tab that had the connection was closed');
    }
  }

  // --- The connection of the tab that leads ---
  #connect(reason) {
    this.#drop();
    // A new EventSource has no Last-Event-ID to send. Without a document it asks for no updates of one.
    for (const name of ['lastEventId', 'last_event_id']) this.#url.searchParams.delete(name);
    if (this.lastEventId) this.#url.searchParams.set('lastEventId', this.lastEventId);
    this.#source = new EventSource(this.#url, { withCredentials: this.#withCredentials });
    for (const name of this.#allNames) this.#source.addEventListener(name, this.#hear);
    // Without locks two tabs can lead for a moment. Each event is taken once even so; the higher claim stays.
    if (!this.leads) this.#claim += 1 - Math.random();
    this.leads = true;
    this.#heardAt = Date.now();
    this.#become('connecting', reason);
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #wait(ms, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, bounded(ms));
  }

  #hear = ({ type, data, lastEventId }) => {
    this.#heardAt = Date.now();
    if (type !== 'error') this.#take(type, data, lastEventId);
    else if (this.#source.readyState === EventSource.CLOSED) this.#probe(this.#source);
    else if (this.state === 'open') this.#become('lost', 'the stream ended; the browser keeps trying');
    else this.#become('lost', `${this.#nobody}; the browser keeps trying`);
  };

  // The browser gives up at an answer it cannot use, and does not say what that was, nor when to come back.
  async #probe(source) {
    this.#become('lost', 'the browser gave up; asking the server why');
    const credentials = this.#withCredentials ? 'include' : 'same-origin';
    const options = { credentials, cache: 'no-store', signal: AbortSignal.timeout(SLOW_MS) };
    const answer = await fetch(this.#url, options).catch(() => null);
    const reason = answer ? await this.#explain(answer) : this.#nobody;
    if (this.#source === source) this.#retry(reason, answer ? retryAfter(answer.headers) : 0);
  }

  async #explain(answer) {
    const type = answer.headers.get('Content-Type');
    const error = type === 'application/json' && (await answer.json().catch(() => null))?.error;
    answer.body?.cancel().catch(() => {});
    if (type?.startsWith('text/event-stream')) return 'the server answers again';
    if (answer.status === 200) return `what answered is ${type}, and no event stream`;
    return `the server said ${answer.status}${error ? `: ${error}` : ''}`;
  }

  #retry(reason, leastWait = 0) {
    this.#drop();
    const longest = Math.min(1_000 * 2 ** this.#tries, LONGEST_WAIT_MS);
    this.#tries += 1;
    const wait = Math.max(leastWait, SHORTEST_WAIT_MS + Math.random() * (longest - SHORTEST_WAIT_MS));
    this.#wait(wait, () => this.#connect(reason));
    this.#become('waiting', reason, Date.now() + wait);
  }

  #take(name, data, id) {
    const after = this.lastEventId;
    let patch;
    try {
      patch = this.#apply(name, data, id);
    } catch (error) {
      this.lastEventId = ''; // The document would be wrong, or not known to be right.
      return this.reconnect(`asking for the document anew: ${error.message}`);
    }
    if (id && this.lastEventId) this.lastEventId = id; // A heartbeat repeats it, for events unheard.
    if (name === 'update' || name === 'heartbeat') this.#tries = 0; // Not at hello: the next may go wrong.
    if (this.leads) this.#post({ kind: 'event', name, data, id, after });
    if (!this.#names.has(name)) return;
    this.#tell('event', { name, data, id });
    if (!OWN_NAMES.includes(name)) this.#tell(name, { name, data, id });
    if (name === 'init' || name === 'update') this.#tell('change', { document: this.document, patch, id });
  }

  // Does to the document what an event says, and returns the patch of an update.
  #apply(name, data, id) {
    if (name === 'hello') {
      this.hello = JSON.parse(data);
      if (this.hello.resume !== 'replay') this.lastEventId = ''; // An init comes, and nothing fits before.
      this.#become('open', REASONS.get(this.hello.reason) ?? 'the server answered');
    } else if (name === 'init') {
      this.document = JSON.parse(data);
      this.lastEventId = id;
    } else if (name === 'update') {
      if (!this.lastEventId) throw new Error('an update came before any init');
      const patch = JSON.parse(data);
      this.document = Statecast.merge(this.document, patch);
      return patch;
    }
  }

  // One timer, not one an event: there may be thousands a second.
  #watch() {
    if (this.state === 'closed') return;
    if (!this.leads) return this.#watchLeader();
    if (this.state === 'waiting') return;
    const silence = Math.abs(Date.now() - this.#heardAt); // A clock that is set costs a needless connection.
    const limit = this.#longestSilence();
    if (silence <= limit) this.#wait(Math.min(limit - silence + 1, ANSWER_MS), () => this.#watch());
    else if (this.state === 'connecting' && this.reason !== SLOW) this.#become('connecting', SLOW);
    else this.#retry(`nothing was heard for ${Math.round(silence / 1_000)} s`);
  }

  #longestSilence() {
    if (this.state === 'connecting' && this.reason !== SLOW) return SLOW_MS;
    if (this.state !== 'open') return ANSWER_MS;
    const heartbeat = Number(this.hello.heartbeat_ms);
    return heartbeat > 0 ? Math.max(2 * heartbeat, LEAST_SILENCE_MS) : Infinity;
  }

  // The network is back, or someone looks: no time to wait, be it our wait or the browser's.
  #hurry() {
    if (!this.leads) this.#post({ kind: 'hurry' });
    else if (this.state === 'waiting' || this.state === 'lost') this.#connect(this.reason);
    else this.#watch();
  }

  #become(state, reason, retryAt = null) {
    const isNews = state !== this.state || reason !== this.reason || retryAt !== this.retryAt;
    Object.assign(this, { state, reason, retryAt });
    this.#watch();
    this.#postState();
    if (isNews) this.#tell('state', { state, reason, retryAt });
  }
};
}
