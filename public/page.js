// page.js: this page only. Shows what statecast.js knows; everything reaches the page as text, drawn once a frame.

// "The last 50" and "2 minutes" are also in the page's text.
const [MAX_EVENTS, MAX_LINES, MAX_CLIENTS, MAX_TEXT] = [50, 200, 50, 300];
const TIMELINE_MS = 120_000;
const CLIENTS_EVERY_MS = 2_000;
// Up to here, #document's text is the document's JSON.
const MAX_ROWS = 10_000;
const MAX_ROW_TEXT = 20_000;
// Laid out by the chunk, and only what is in view: 10,000 rows take 17 ms a frame instead of 50.
const CHUNK_ROWS = 100;
const MARK_MS = 1_500;
// What comes so soon after `hello` was missed.
const REPLAY_MS = 500;
const PERMIT_MS = 1_000;
const WHEN_MS = 10_000;
// Of a fault of the lab.
const LONGEST_FAULT_MS = 300_000;
const STANDARD = 'https://html.spec.whatwg.org/multipage/server-sent-events.html';

const byId = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const topic = query.get('topic');
const path = (of, name) => (name ? `${of}/${encodeURIComponent(name)}` : of);
// Relative, for a page below a proxy's path.
const absolute = (relative) => new URL(relative, document.baseURI);

// What this page follows. It is made when the page knows whether it may read, and anew with a token.
const NOBODY = { document: undefined, lastEventId: '', hello: null, leads: true, retryAt: null };
let stream = path('events', topic);
let statecast = { ...NOBODY, state: 'connecting', reason: 'the page asks what it may read' };
const listeners = [];
const hear = (name, listener) => listeners.push([name, listener]);
// More events: ?event=chat&event=alert
const names = new Set(['message', ...query.getAll('event')]);

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const show = (id, text) => setText(byId(id), text);
const on = (id, event, listener) => byId(id).addEventListener(event, listener);
const count = (n) => n.toLocaleString('en');
const seconds = (ms) => Math.max(0, Math.round(ms / 1000));
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;

function element(name, className, ...content) {
	const made = document.createElement(name);
	if (className) made.className = className;
	made.append(...content);
	return made;
}

// Text with `code` in it.
function tell(id, text) {
	const target = byId(id);
	if (target.told === text) return;
	target.told = text;
	target.replaceChildren(...text.split('`').map((part, index) => (index % 2 ? element('code', '', part) : part)));
}

function shorten(text, limit) {
	return text.length <= limit ? text : `${text.slice(0, limit)} … (${count(text.length)} characters)`;
}

// --- One drawing a frame ---

let drawing = false;
let lastDrawTook = 0;

function draw() {
	if (drawing) return;
	drawing = true;
	// Three quarters of the time stay for everything else.
	if (lastDrawTook > 12) setTimeout(requestAnimationFrame, lastDrawTook * 3, drawNow);
	else requestAnimationFrame(drawNow);
}

function drawNow() {
	drawing = false;
	const start = performance.now();
	drawDocument();
	drawEvents();
	drawWire();
	drawReadings();
	drawTour();
	lastDrawTook = performance.now() - start;
}

const isAtEnd = (list) => list.scrollTop + list.clientHeight > list.scrollHeight - 40;

// Adds what came below, as in a terminal, and follows it unless somebody has scrolled up.
function append(list, items, limit, follows = isAtEnd(list)) {
	list.append(...items);
	while (list.childElementCount > limit) list.firstElementChild.remove();
	if (follows) list.scrollTop = list.scrollHeight;
}

// --- The connection ---

const word = (state) => (state === 'waiting' ? 'reconnecting' : state);
let heartbeatAt = null;
let eventCount = 0;
let eventsThisSecond = 0;
let eventsPerSecond = 0;
let opened = 0;
let tabCount = 1;

const countdown = element('span');

function showState() {
	const { state, reason } = statecast;
	const view = byId('state');
	document.body.dataset.state = view.dataset.state = state;
	document.title = state === 'open' ? 'statecast' : `${word(state)} – statecast`;
	view.replaceChildren(word(state), countdown);
	show('now', word(state));
	show('reason', reason);
	showCountdown();
}

function showCountdown() {
	const { retryAt } = statecast;
	setText(countdown, retryAt === null ? '' : ` in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s`);
}

// What happened last, and where a standard speaks of it.
let happened = ['The page is loading its scripts; the stream comes after them.', ''];
let openedAt = 0;

function happen(text, link, label = 'the\u00a0standard') {
	happened = [text, link.startsWith('http') ? link : STANDARD + link, label];
	draw();
}

const WEB_LOCKS = ['https://w3c.github.io/web-locks/', 'Web\u00a0Locks'];
const MERGE_PATCH = ['https://www.rfc-editor.org/rfc/rfc7396', 'RFC\u00a07396'];
const GAP = 'It asked again with its last `id`, but the server does not have all that came after it. So it sent the whole document.';
const BEGINNINGS = {
	first: 'The server answered `200` and `text/event-stream`, and keeps the answer open. First comes `hello`, then the whole document as `init`, with an `id`.',
	known: 'It asked again with its last `id`, and the server sent what came after it: nothing is missing, nothing comes twice.',
	gap: GAP,
	restart: GAP,
	lagged: 'This page read too slowly, and the server does not wait: it sent the whole document.',
};

// What the last transition means.
function explanation() {
	const { state, reason, hello, lastEventId, leads } = statecast;
	if (needs.read && !may.read) return ['Reading is guarded here. EventSource can send no header, so the token goes into the stream’s address, and not into this page’s.', '#the-eventsource-interface'];
	if (state === 'closed') return ['No connection is left behind that nobody reads.', '#garbage-collection'];
	if (!leads) return ['This tab has no connection of its own: another tab of this page has it, and tells this one what comes. Over HTTP/1.1 a browser opens six connections to a server.', ...WEB_LOCKS];
	if (state === 'open' && BEGINNINGS[hello?.reason]) return [BEGINNINGS[hello.reason], hello.reason === 'first' ? '#parsing-an-event-stream' : '#the-last-event-id-header'];
	if (/^nothing was/.test(reason)) return ['Not a byte for two heartbeats. A network that dies says no goodbye, so the script makes a new EventSource, with the last `id` in the query.', '#authoring-notes'];
	if (state === 'waiting' || /gave up/.test(reason)) return ['EventSource gives up at any answer but `200` `text/event-stream`, and does not say why. So the script asks with `fetch`, and makes a new one after a random while that grows.', '#fail-the-connection'];
	const retry = wireRetry ? ` The wire’s said \`retry: ${wireRetry}\`; each client gets its own.` : '';
	if (state === 'lost') return [`EventSource waits as many milliseconds as the last \`retry:\` said, and asks again by itself, with \`Last-Event-ID: ${lastEventId}\`.${retry}`, '#reestablish-the-connection'];
	return ['The browser sent a `GET` that accepts `text/event-stream`, and waits for the answer.', '#sse-processing-model'];
}

// What an event means. Those that come with a new connection were missed, and its explanation stays.
function explainEvent({ name, data, id }) {
	if (Date.now() - openedAt < REPLAY_MS || name === 'hello' || name === 'init') return;
	const by = statecast.leads ? '' : ' It came by way of the tab that has the connection.';
	if (name === 'heartbeat') {
		happen(`A \`heartbeat\` came: an event that the server sends every ${statecast.hello?.heartbeat_ms / 1000} s, so that silence means something. The standard proposes a comment, which no script can hear.${by}`, '#authoring-notes');
	} else if (name === 'update') {
		const published = id === publishedId ? ', which this page published' : '';
		happen(`An \`update\` came${published}: a merge patch of ${plural(data.length, 'character')}. The browser keeps its \`id\`, \`${id}\`, and will send it as \`Last-Event-ID\`.${by}`, '#dispatchMessage');
	} else {
		happen(`An event \`${name}\` came. It changes nothing in the document, but has an \`id\`, too: after a break it is not missed.${by}`, '#event-stream-interpretation');
	}
}

function drawReadings() {
	const { hello, leads } = statecast;
	const [text, link, label] = happened;
	tell('happening', text);
	if (link) byId('standard').href = link;
	show('standard', label ?? byId('standard').textContent);
	show('client', hello ? String(hello.client) : '–');
	// How many there are is known of the lock's queue alone.
	const whose = leads ? 'this one has it' : 'another has it';
	if (!navigator.locks) show('tabs', whose);
	else show('tabs', tabCount > 1 ? `${tabCount}: ${whose}` : 'this one');
	show('reconnects', opened > 2 ? `${opened - 1} times` : ['–', 'not yet', 'once'][opened]);
	show('last-event-id', statecast.lastEventId || '–');
	show('count', count(eventCount) + (eventsPerSecond > 1 ? `, ${count(eventsPerSecond)}/s` : ''));
	const last = heartbeatAt ? `, ${seconds(Date.now() - heartbeatAt)} s ago` : '';
	show('heartbeat', hello ? `every ${hello.heartbeat_ms / 1000} s${last}` : '–');
}

// Tabs that have the lock or wait for it.
async function countTabs() {
	const locks = await navigator.locks?.query();
	if (!locks) return;
	const ours = ({ name }) => name.startsWith('statecast ') && name.endsWith(` ${absolute(stream)}`);
	const before = tabCount;
	tabCount = [...locks.held, ...locks.pending].filter(ours).length;
	if (tabCount !== before && clients.size > 0) drawClients([...clients.values()]);
}

// Said once a state lasts.
let speaking;
function speak() {
	clearTimeout(speaking);
	speaking = setTimeout(() => show('spoken', `${word(statecast.state)}: ${statecast.reason}`), 700);
}

hear('state', ({ state, reason }) => {
	if (state === 'open') openedAt = Date.now();
	showState();
	happen(...explanation());
	speak();
	if (state !== 'connecting') log({ name: state, data: reason, id: '' }, 'state');
	addPeriod(state);
	askClientsSoon();
	draw();
});

hear('hello', () => { opened += 1; });

hear('heartbeat', (event) => {
	explainEvent(event);
	heartbeatAt = Date.now();
	if (!matchMedia('(prefers-reduced-motion: reduce)').matches) byId('lamp').animate([{}, { scale: 1.25 }, {}], 500);
});

setInterval(() => {
	[eventsPerSecond, eventsThisSecond] = [eventsThisSecond, 0];
	// A tab that opened another one is hidden, and sees that there are two.
	countTabs().then(drawTour);
	if (document.hidden) return;
	showCountdown();
	drawReadings();
	drawTimeline();
}, 1000);

// --- The time line ---

const before = element('span', 'before');
const periods = [{ state: 'connecting', from: Date.now(), bar: element('span', 'connecting') }];

function addPeriod(state) {
	if (periods.at(-1).state === state) return;
	periods.push({ state, from: Date.now(), bar: element('span', state) });
	drawTimeline();
}

function drawTimeline() {
	const now = Date.now();
	const start = now - TIMELINE_MS;
	while (periods[1]?.from < start || periods.length > 200) periods.shift();
	const times = {};
	periods.forEach(({ state, from, bar }, index) => {
		const length = (periods[index + 1]?.from ?? now) - Math.max(from, start);
		times[state] = (times[state] ?? 0) + length;
		bar.style.flexGrow = length;
	});
	before.style.flexGrow = Math.max(0, periods[0].from - start);
	byId('timeline').replaceChildren(before, ...periods.map(({ bar }) => bar));
	const told = Object.entries(times).map(([state, ms]) => `${word(state)} for ${seconds(ms)} s`);
	byId('timeline').setAttribute('aria-label', `The last two minutes: ${told.join(', ')}`);
}

// --- The document ---

const view = byId('document');
// A row for each key: a change draws its own and no other.
const rows = new Map();
const rowList = element('span');
let lastRow = null;
let dirtyKeys = new Set();
let allDirty = false;

hear('change', ({ patch }) => {
	if (isObject(patch) && rows.size > 0) for (const key of Object.keys(patch)) dirtyKeys.add(key);
	else allDirty = true;
	draw();
});

function drawDocument() {
	if (!allDirty && dirtyKeys.size === 0) return;
	const now = statecast.document;
	if (!isObject(now) || Object.keys(now).length === 0) {
		rows.clear();
		rowList.replaceChildren();
		lastRow = null;
		view.replaceChildren(shorten(JSON.stringify(now, null, 2), MAX_ROW_TEXT));
		if (view.dataset.shown) mark(view);
	} else {
		if (rowList.parentNode !== view) view.replaceChildren('{\n', rowList, '}');
		const keys = Object.keys(now);
		if (allDirty) for (const key of rows.keys()) if (!Object.hasOwn(now, key)) dropRow(key);
		for (const key of allDirty ? keys : dirtyKeys) drawRow(now, key);
		if (rows.size < keys.length && rows.size < MAX_ROWS) for (const key of keys) drawRow(now, key);
		closeRows();
	}
	view.dataset.shown = 'yes';
	allDirty = false;
	dirtyKeys = new Set();
	noteDocument(now);
}

function drawRow(now, key) {
	if (!Object.hasOwn(now, key)) return dropRow(key);
	let row = rows.get(key);
	if (!row) {
		if (rows.size >= MAX_ROWS) return;
		row = { element: element('span', 'row'), value: new Text(), end: new Text(',\n') };
		row.element.append('  ', element('b', '', JSON.stringify(key)), ': ', row.value, row.end);
		row.element.row = row;
		rows.set(key, row);
		if (!(rowList.lastChild?.childElementCount < CHUNK_ROWS)) rowList.append(element('span', 'chunk'));
		rowList.lastChild.append(row.element);
	}
	const text = shorten(JSON.stringify(now[key], null, 2), MAX_ROW_TEXT).replaceAll('\n', '\n  ');
	if (row.value.data === text && !dirtyKeys.has(key)) return;
	row.value.data = text;
	if (view.dataset.shown) mark(row.element);
}

function dropRow(key) {
	const row = rows.get(key);
	if (!row) return;
	rows.delete(key);
	const chunk = row.element.parentNode;
	row.element.remove();
	if (!chunk.hasChildNodes()) chunk.remove();
}

function closeRows() {
	const last = rowList.lastChild?.lastChild.row ?? null;
	if (last === lastRow) return;
	if (lastRow) lastRow.end.data = ',\n';
	if (last) last.end.data = '\n';
	lastRow = last;
}

// One glow a row, or a thousand changes a second would be as many.
function mark(element) {
	element.glow?.cancel();
	element.glow = element.animate({ backgroundColor: ['var(--mark)', 'var(--mark)', 'transparent'] }, MARK_MS);
}

function noteDocument(now) {
	const size = isObject(now) ? Object.keys(now).length : 0;
	byId('empty').hidden = now !== null && (size > 0 || !isObject(now));
	view.classList.toggle('bare', !byId('empty').hidden);
	let note = isObject(now) ? plural(size, topic ? 'key' : 'topic') : '';
	if (size > rows.size) note += `, the first ${count(MAX_ROWS)} shown`;
	show('document-note', now === null ? 'this topic is absent' : note);
}

// --- The events ---

const list = byId('events');
const clock = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });
const exactly = (at) => `${clock.format(at)}.${String(at.getMilliseconds()).padStart(3, '0')}`;
const arrived = [];

function log(event, kind) {
	arrived.push({ ...event, kind, at: new Date() });
	if (arrived.length > MAX_EVENTS) arrived.shift();
}

hear('event', (event) => {
	if (event.name === 'heartbeat') return;
	explainEvent(event);
	eventCount += 1;
	eventsThisSecond += 1;
	log(event, 'event');
	draw();
});

function drawEvents() {
	if (arrived.length > 0) append(list, arrived.splice(0).map(eventRow), MAX_EVENTS);
}

function eventRow({ name, data, id, kind, at }) {
	const row = element('li', `${kind} ${kind === 'state' ? name : ''}`);
	row.dataset.event = name;
	row.dataset.id = id;
	row.append(element('time', '', exactly(at)), element('b', '', name), element('code', 'id', name === 'hello' ? '' : id));
	row.append(element('span', 'data', shorten(data, MAX_TEXT)));
	return row;
}

// --- The wire ---

const FIELDS = {
	head: 'The head of the answer. EventSource wants 200 and text/event-stream.',
	edge: 'A piece as the browser got it. Pieces have nothing to do with events; ¦ marks an edge inside of a line.',
	retry: 'How many milliseconds EventSource waits before it asks again. Each client gets its own, so that they do not come back together.',
	id: 'The id of this event. The browser keeps it, and sends it as Last-Event-ID when it asks again.',
	event: 'The name of this event, whose listeners are called. Without this line: message.',
	data: 'A line of the data. Several are joined by line breaks; one space after the colon is not part of it.',
	heartbeat: 'An event and no comment, so that a script notices when it stays away.',
	blank: 'An empty line: the event is complete, and dispatched now. Half an event never is.',
	comment: 'A colon at the beginning: a comment, of which nobody hears.',
	unknown: 'A field that the standard does not know: ignored.',
	end: 'A fetch ends here; an EventSource comes back by itself.',
};

const wire = byId('wire');
let lines = [];
let isPaused = false;
let readOn = () => {};
let reading = null;
let wireClient = null;
let wireRetry = '';
// The names and reasons that the wire has shown.
let wireShown = '';
let pointed = null;

function addLine(kind, text) {
	lines.push({ kind, text, length: 0, end: '', isOpen: kind === 'line' });
	if (lines.length > MAX_LINES) lines.shift();
	draw();
}

// Bytes to lines. A line may come in many pieces; CR, LF and CRLF end it, and a CRLF may be torn in two.
function feed(bytes, decoder) {
	const text = decoder.decode(bytes, { stream: true });
	const last = lines.at(-1);
	const isTorn = last?.end === '\\r' && text.startsWith('\n');
	if (isTorn) last.end += '¦\\n';
	if (last?.isOpen && last.text) last.text += '¦';
	else if (!isTorn) addLine('edge', `${exactly(new Date())}  ${count(bytes.length)} bytes`);
	for (const [, content, end] of (isTorn ? text.slice(1) : text).matchAll(/([^\r\n]*)(\r\n|\r|\n|$)/g)) {
		if (!content && !end) continue;
		if (!lines.at(-1)?.isOpen) addLine('line', '');
		const line = lines.at(-1);
		if (line.text.length < MAX_TEXT) line.text += content.slice(0, MAX_TEXT);
		line.length += content.length;
		if (end) [line.end, line.isOpen] = [end.replace('\r', '\\r').replace('\n', '\\n'), false];
		line.isDrawn = false;
		if (end) noteLine(line.text.replaceAll('¦', ''));
	}
	draw();
}

function noteLine(text) {
	const [, retry] = /^retry: ?(\d+)/.exec(text) ?? [];
	const [, client, reason] = /^data: ?\{"client":(\d+),.*"reason":"(\w+)"/.exec(text) ?? [];
	const [, name] = /^event: ?(.+)/.exec(text) ?? [];
	if (retry) wireRetry = retry;
	if (client) wireClient = Number(client);
	if (name ?? reason) wireShown += ` ${name ?? reason}`;
	if (wireShown.length > 10_000) wireShown = wireShown.slice(5_000);
}

function lineKind({ kind, text, isOpen }) {
	if (kind !== 'line') return kind;
	const plain = text.replaceAll('¦', '').replace('\ufeff', '');
	if (/^event: ?heartbeat$/.test(plain)) return 'heartbeat';
	if (!plain && !isOpen) return 'blank';
	return /^(retry|id|event|data)(?![^:])/.exec(plain)?.[0] ?? (plain.startsWith(':') ? 'comment' : 'unknown');
}

function drawWire() {
	if (lines.every((line) => line.isDrawn)) return;
	// Asked first: the last line may grow.
	const follows = isAtEnd(wire);
	const fresh = [];
	for (const line of lines) {
		if (line.isDrawn) continue;
		line.isDrawn = true;
		if (!line.element) fresh.push(line.element = element('li'));
		line.element.className = line.element.dataset.kind = lineKind(line);
		if (line.element === pointed) line.element.classList.add('pointed');
		const rest = line.length - MAX_TEXT;
		const text = line.text.replace('\ufeff', '[BOM]') + (rest > 0 ? ` … ${count(rest)} more` : '');
		line.element.replaceChildren(text, element('i', '', line.end));
	}
	append(wire, fresh, MAX_LINES, follows);
}

async function showWire() {
	reading = new AbortController();
	[lines, wireClient, wireShown] = [[], null, ''];
	wire.replaceChildren();
	wire.hidden = false;
	showWireButtons();
	show('wire-explains', 'Tap a line or rest on it, or use the arrow keys, to learn what it is for.');
	const { signal } = reading;
	try {
		const answer = await fetch(stream, { signal, cache: 'no-store' });
		addLine('head', `HTTP/1.1 ${answer.status} ${answer.statusText}`);
		addLine('head', `Content-Type: ${answer.headers.get('Content-Type')}`);
		const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
		const reader = answer.body.getReader();
		askClientsSoon();
		for (;;) {
			if (isPaused) await new Promise((resolve) => { readOn = resolve; });
			const { done, value } = await reader.read();
			if (done) throw new Error('the answer ended');
			feed(value, decoder);
		}
	} catch ({ message }) {
		if (signal.aborted) return;
		addLine('end', message);
		hideWire();
	}
}

function hideWire() {
	reading?.abort();
	reading = wireClient = null;
	isPaused = false;
	readOn();
	showWireButtons();
	askClientsSoon();
}

function showWireButtons() {
	show('wire-show', reading ? 'Hide the wire' : 'Show the wire');
	show('wire-pause', isPaused ? 'Read on' : 'Stop reading');
	byId('wire-pause').disabled = !reading;
}

function toggleWire() {
	if (!reading) return showWire();
	hideWire();
	wire.hidden = true;
}

function togglePause() {
	isPaused = !isPaused;
	if (!isPaused) readOn();
	showWireButtons();
}

on('wire-show', 'click', toggleWire);
on('wire-pause', 'click', togglePause);
addEventListener('pagehide', hideWire);

function explain(line) {
	if (!line || line === pointed) return;
	pointed?.classList.remove('pointed');
	pointed = line;
	line.classList.add('pointed');
	const bom = line.textContent.includes('[BOM]') ? ' A byte order mark is dropped at the beginning of a stream.' : '';
	show('wire-explains', FIELDS[line.dataset.kind] + bom);
}

for (const event of ['pointerover', 'click']) on('wire', event, ({ target }) => explain(target.closest('li')));
on('wire', 'keydown', (event) => {
	const next = { ArrowUp: 'previousElementSibling', ArrowDown: 'nextElementSibling' }[event.key];
	if (!next) return;
	event.preventDefault();
	explain(pointed?.isConnected ? pointed[next] : wire.lastElementChild);
	pointed?.scrollIntoView({ block: 'nearest' });
});

// --- Asking the server ---

const tokenField = byId('token');
// Whether it may be done by this page, and whether a token is needed for it.
const may = { read: true, write: false };
const needs = { read: false, write: false };
const bearer = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

// Asked with OPTIONS, because a refusal is no error then, and does not get into the console.
async function permit(address, token) {
	const options = { method: 'OPTIONS', headers: bearer(token), signal: AbortSignal.timeout(PERMIT_MS) };
	const answer = await fetch(address, options).catch(() => null);
	const isAllowed = answer?.headers.get('Allow')?.includes('GET') ?? true;
	return { isAllowed, wantsToken: !isAllowed && answer.headers.has('WWW-Authenticate') };
}

async function askWhatIsAllowed() {
	await Promise.all(Object.entries({ read: path('events', topic), write: 'clients' }).map(async ([what, address]) => {
		const bare = await permit(address);
		needs[what] = bare.wantsToken;
		may[what] = bare.isAllowed || (bare.wantsToken && tokenField.value !== '' && (await permit(address, tokenField.value)).isAllowed);
	}));
	byId('access').hidden = !needs.read && !needs.write;
	const missing = [!may.read && 'reading', !may.write && 'publishing'].filter(Boolean).join(' and ');
	const verdict = tokenField.value ? `this token is not enough for ${missing}` : `a token is needed for ${missing}`;
	show('access-result', missing ? verdict : 'accepted');
	show('clients-note', may.write ? 'what the server knows of each connection' : 'for those who may publish');
	showForm();
	showCommands();
	askClientsSoon();
}

// The answer's JSON, or what was wrong.
async function ask(method, address, body, type = 'application/json') {
	if (method !== 'GET' && needs.write && !may.write) {
		await askWhatIsAllowed();
		if (!may.write) return { error: 'this needs the publish token, which goes into the field below the state' };
	}
	const headers = { ...bearer(tokenField.value), ...(body === undefined ? {} : { 'Content-Type': type }) };
	const response = await fetch(address, { method, headers, body }).catch(() => null);
	if (!response) return { error: `${location.host} does not answer` };
	const answer = await response.json().catch(() => ({}));
	if (response.ok) return { answer };
	if (response.status === 401) askWhatIsAllowed();
	return { error: answer.error ?? `the server answered ${response.status} without saying why` };
}

function say(id, { error }, text) {
	show(id, error ?? text);
	byId(id).classList.toggle('refused', error !== undefined);
}

const TOKEN_OPTION = '-H "Authorization: Bearer $TOKEN"';
const plain = (url) => url.replace(/^http:../, '');

function curl(method, address, body) {
	const url = plain(absolute(address).href);
	const parts = ['curl'];
	if (method !== 'GET' && (method !== 'POST' || body === undefined)) parts.push(`-X ${method}`);
	if (needs.write && method !== 'GET') parts.push(TOKEN_OPTION);
	if (body !== undefined) parts.push(`-d '${body.trim().replace(/\s*\n\s*/g, ' ').replaceAll("'", "'\\''")}'`);
	return `${parts.join(' ')} ${url.includes('?') ? `'${url}'` : url}`;
}

// The commands of the text, for this server.
function showCommands() {
	for (const code of document.querySelectorAll('.tour code')) {
		code.written ??= code.textContent;
		const here = code.written.replace('localhost:8080', plain(absolute('.').href).replace(/\/$/, ''));
		setText(code, needs.write ? here.replace('curl', `curl ${TOKEN_OPTION}`) : here);
	}
	show('empty-curl', curl('POST', path('state', topic ?? 'kitchen'), '{"temp":21.5}'));
	show('lab-curl', lastFault ? curl('POST', lastFault) : curl('GET', 'lab'));
}

async function copy(button, text) {
	const label = button.textContent;
	try {
		await navigator.clipboard.writeText(text);
	} catch {
		// Plain http has no clipboard but this.
		const field = element('textarea', '', text);
		button.after(field);
		field.select();
		document.execCommand('copy');
		field.remove();
		button.focus();
	}
	if (label === 'Copied') return;
	setText(button, 'Copied');
	setTimeout(setText, MARK_MS, button, label);
}

for (const code of document.querySelectorAll('code.command')) {
	const button = element('button', 'small copy', 'Copy');
	button.type = 'button';
	button.addEventListener('click', () => copy(button, code.textContent));
	code.after(' ', button);
}

on('access', 'submit', async (event) => {
	event.preventDefault();
	// Of this tab, and of those that it opens: a reload asks for it no more.
	sessionStorage.setItem('token', tokenField.value);
	await askWhatIsAllowed();
	if (needs.read) connect();
});

// --- Publishing ---

const [whatField, topicField, eventField] = ['what', 'topic', 'event'].map((name) => byId(`publish-${name}`));
const jsonField = byId('publish-json');

function wanted() {
	const [what, name, json] = [whatField.value, topicField.value, jsonField.value];
	if (what === 'POST') {
		const event = eventField.value ? `?event=${encodeURIComponent(eventField.value)}` : '';
		return { method: 'POST', address: path('events', name) + event, body: json, type: 'text/plain' };
	}
	return { method: what, address: path('state', name), body: what === 'DELETE' ? undefined : json };
}

function showForm() {
	const { method, address, body } = wanted();
	const isEvent = method === 'POST';
	eventField.hidden = eventField.labels[0].hidden = !isEvent;
	jsonField.hidden = jsonField.labels[0].hidden = body === undefined;
	show('publish-body', isEvent ? 'text' : 'JSON');
	show('publish-curl', curl(method === 'PATCH' ? 'POST' : method, address, body));
}

// The server says the rest. These two never reach it: they are steps in a path.
function fault(body, type) {
	if (/^\.\.?$/.test(topicField.value)) return 'a topic is 1 to 64 of A-Z a-z 0-9 . _ -, and neither . nor ..';
	try {
		if (!type && body !== undefined) JSON.parse(body);
	} catch ({ message }) {
		return `this is not JSON: ${message}`;
	}
}

let publishedId = '';
// Published while this page had no connection.
let publishedAway = '';

async function publish(method, address, body, type) {
	const isAway = statecast.state !== 'open';
	const result = await ask(method, address, body, type);
	const id = result.answer?.id;
	if (!id) return result;
	publishedId = id;
	if (isAway) publishedAway = id;
	const who = isAway ? 'and to this page when it is back' : 'this page among them';
	const link = type ? ['#event-stream-interpretation'] : MERGE_PATCH;
	happen(`The server took what this page published, as \`${id}\`. It goes to every client that listens, ${who}.`, ...link);
	return result;
}

on('publish', 'submit', async (event) => {
	event.preventDefault();
	const { method, address, body, type } = wanted();
	// An event is dispatched to those who know its name.
	if (type) listenTo(eventField.value || 'message');
	const error = fault(body, type);
	const result = error ? { error } : await publish(method, address, body, type);
	say('publish-result', result, `published as ${result.answer?.id}`);
});

on('publish', 'input', showForm);
on('publish-json', 'keydown', (event) => {
	if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('publish').requestSubmit();
});

// --- The server's clients ---

let askingClients;
// What the server said last: each client by its id.
let clients = new Map();

function askClientsSoon(delay = 100) {
	clearTimeout(askingClients);
	if (may.write) askingClients = setTimeout(showClients, delay);
}

async function listClients() {
	const { answer, error } = await ask('GET', 'clients');
	if (answer) drawClients(answer);
	else show('clients-note', error);
}

async function showClients() {
	const start = performance.now();
	if (!document.hidden) await listClients();
	askClientsSoon(Math.max(CLIENTS_EVERY_MS, 20 * (performance.now() - start)));
}

function drawClients(list) {
	clients = new Map(list.map((client) => [client.id, client]));
	const here = tabCount > 1 ? `this page, ${tabCount} tabs` : 'this page';
	const ours = (id) => (id === statecast.hello?.client ? here : id === wireClient ? 'the wire' : '');
	list.sort((one, other) => (ours(other.id) > '') - (ours(one.id) > '') || other.id - one.id);
	const left = list.length - MAX_CLIENTS;
	show('clients-note', `${count(list.length)} connected${left > 0 ? `, ${MAX_CLIENTS} shown` : ''}`);
	const table = byId('clients');
	const before = new Map(Array.from(table.rows, (row) => [row.dataset.client, row]));
	const rows = list.slice(0, MAX_CLIENTS).map((client) => {
		const row = before.get(String(client.id)) ?? newClientRow(client.id);
		const since = `${seconds(Date.now() - client.connected_at)} s`;
		const stream = `/${path('events', client.topic)}`;
		const cells = [`${client.id} ${ours(client.id)}`, client.state.replace('_', ' '), null, stream, since, count(client.events),
			count(client.bytes), client.last_event_id ?? '–'];
		cells.forEach((text, index) => text !== null && setText(row.cells[index], text));
		row.className = `${client.state} ${ours(client.id) && 'own'}`;
		row.title = `${client.address} ${client.user_agent ?? ''}`;
		return row;
	});
	// A button must not go while it is pressed.
	if (rows.some((row, index) => row !== table.rows[index]) || before.size !== rows.length) table.replaceChildren(...rows);
}

function newClientRow(id) {
	const row = element('tr', '', ...Array.from({ length: 8 }, () => element('td')));
	row.dataset.client = id;
	const button = element('button', 'small', 'End');
	button.setAttribute('aria-label', `End client ${id}`);
	button.addEventListener('click', async () => {
		await ask('DELETE', `clients/${id}`);
		askClientsSoon(0);
	});
	row.cells[2].append(button);
	return row;
}

// --- The lab ---

let lastFault = '';
let hasLab = false;

async function inject(address) {
	lastFault = address;
	showCommands();
	const result = await ask('POST', address);
	say('lab-result', result, `${address.split('?')[0].split('/').at(-1)}: done`);
	return result;
}

// A parameter's field, from the words that the server has for it.
function parameterField(name, text) {
	const values = new Set(text.match(/\b\d{3}\b/g));
	if (values.size > 1) return Object.assign(element('select', '', ...Array.from(values, (value) => new Option(value))), { name });
	return Object.assign(element('input'), { name, placeholder: /such as ([^,]+)/.exec(text)?.[1] ?? '', size: 4 });
}

function faultRow({ name, scope, parameters, does }) {
	const others = Object.keys(parameters).filter((key) => key !== 'for');
	const fields = others.map((key) => parameterField(key, parameters[key]));
	const button = element('button', 'small', name);
	button.addEventListener('click', () => {
		const given = [...fields, ...(parameters.for ? [byId('lab-for')] : [])].filter(({ value }) => value);
		const search = given.map((field) => `${field.name}=${encodeURIComponent(field.value)}`).join('&');
		const whose = scope === 'client' ? `clients/${byId('lab-client').value || statecast.hello?.client}` : 'server';
		inject(`lab/${whose}/${name}${search && '?'}${search}`);
	});
	const labels = fields.map((field) => element('label', '', `${field.name} `, field));
	return element('div', 'fault', button, element('p', '', does), ...labels);
}

// Asked so that no 404 gets into the console.
async function showLab() {
	const response = await fetch('lab', { method: 'OPTIONS' }).catch(() => null);
	if (!response?.headers.get('Allow')?.includes('GET')) return;
	const { answer } = await ask('GET', 'lab');
	for (const scope of ['client', 'server']) {
		const faults = answer.faults.filter((fault) => fault.scope === scope);
		byId('faults').append(element('h3', '', `Faults of ${scope === 'client' ? 'one client' : 'the server'}`), ...faults.map(faultRow));
	}
	byId('lab').hidden = false;
	hasLab = true;
	if (step) showDo();
}

// --- The tour ---

// What each experiment needs to know, since its step was opened.
let facts = {};
let step = 0;
const seenSteps = new Set();
let hopes = [];

// Becomes true when it is so, or false if that takes too long.
function when(isSo, ms = WHEN_MS) {
	return new Promise((resolve) => {
		hopes.push({ isSo, resolve });
		setTimeout(resolve, ms, false);
		drawTour();
	});
}

const wireState = () => clients.get(wireClient)?.state;

async function openWire() {
	if (!reading) showWire();
	return { answer: await when(() => wireShown.includes(' init')) };
}

async function publishChange() {
	await openWire();
	return publish('PATCH', path('state', topic ?? 'kitchen'), '{"temp":21.5}');
}

// A tab can be opened while the click is fresh. The server would miss the wire's client at the next heartbeat only.
async function openTab() {
	const gone = wireClient;
	if (reading) toggleWire();
	const tab = open(`${location.pathname}${location.search}#3`);
	if (gone) await ask('DELETE', `clients/${gone}`);
	await listClients();
	return tab ? {} : { error: 'the browser lets this page open no tab: open one yourself' };
}

async function endAndPublish() {
	const result = await ask('DELETE', `clients/${statecast.hello?.client}`);
	if (result.error) return result;
	await when(() => statecast.state !== 'open');
	return publish('PATCH', path('state', topic ?? 'kitchen'), '{"published":"while the state was lost"}');
}

function silence() {
	const ms = Math.min(3 * statecast.hello?.heartbeat_ms, LONGEST_FAULT_MS);
	return inject(`lab/clients/${statecast.hello?.client}/stall?for=${ms}ms`);
}

async function publishMuch() {
	const body = 'x'.repeat(100_000);
	for (let number = 0; number < 50; number += 1) {
		const { error } = await ask('POST', path('events', topic), body, 'text/plain');
		if (error) return { error };
	}
	await listClients();
	return {};
}

async function readSlowly() {
	await openWire();
	if (!isPaused) togglePause();
	const stall = (ms) => inject(`lab/clients/${wireClient}/stall?for=${ms}ms`);
	let { error } = await publishMuch();
	// Firefox and WebKit read on, and keep what the page does not take.
	const readsOn = !error && await when(() => wireState() === 'live', 2 * CLIENTS_EVERY_MS);
	if (readsOn) {
		if (!hasLab) error = 'this browser reads on although the page does not; with `--lab` the server can help';
		else ({ error } = await stall(LONGEST_FAULT_MS));
	}
	if (!error) ({ error } = await publishMuch());
	// So that it can be seen.
	await new Promise((resolve) => { setTimeout(resolve, 2 * MARK_MS); });
	// A fault takes the place of the one before.
	if (readsOn && hasLab) await stall(1);
	if (isPaused) togglePause();
	return { error };
}

// Of each experiment: the panels that it is about, what Do it does, what to watch for, and whether it was seen.
const STEPS = [
	{ panels: ['wire'], act: openWire, watch: 'the lines of the wire',
		seen: () => reading && statecast.state === 'open' && wireShown.includes(' init') && `one answer, \`200\`, with \`retry: ${wireRetry}\`, \`hello\` and \`init\`` },
	{ panels: ['document', 'wire'], act: publishChange, watch: 'the document and the end of the wire',
		seen: () => facts.update && wireShown.includes(' update') && `the \`update\` \`${facts.update}\`` },
	{ panels: ['clients'], act: openTab, watch: 'the second tab, and how many clients there are',
		seen: () => (facts.tabs && tabCount === 1 && statecast.leads ? 'the other tab is closed, and this one has the connection' : hasSeenTabs() && 'two tabs, one client; now close one of the tabs') },
	{ panels: ['events', 'clients'], act: endAndPublish, watch: 'the state, and the last events',
		seen: () => facts.replayed && `away for ${facts.away} s; then \`replay\`, and the \`update\` once` },
	{ panels: ['connection'], act: silence, lab: true, watch: 'how the age of the heartbeat counts up',
		seen: () => facts.silence },
	{ panels: ['clients', 'wire'], act: readSlowly, watch: 'the state of the wire in Clients',
		seen: () => facts.caughtUp && wireShown.includes(' lagged') && 'the wire was catching up, then `lagged`; nobody waited' },
	{ panels: ['events'], act: () => inject('lab/server/restart'), lab: true, watch: 'the state, and the last events',
		seen: () => facts.restarted && '`hello` with `restart`, and the whole document' },
];

// Two tabs, and one client: without locks nobody counts the tabs, but one that follows knows of another.
function hasSeenTabs() {
	facts.tabs ||= tabCount > 1 || (!statecast.leads && statecast.state === 'open');
	return facts.tabs && !reading && clients.has(statecast.hello?.client);
}

hear('state', ({ state, reason }) => {
	if (state === 'lost') facts.lostAt ??= Date.now();
	if (/^nothing was heard/.test(reason)) facts.silence = `${reason}, and the page asked again`;
});
hear('hello', () => {
	const { reason } = statecast.hello;
	facts.isBack = reason === 'known';
	facts.restarted ||= reason === 'restart';
	facts.away = ((Date.now() - facts.lostAt) / 1000).toFixed(1);
});
hear('update', ({ id }) => {
	facts.update = id;
	if (facts.isBack && facts.lostAt && id === publishedAway) facts.replayed = id;
});

function drawTour() {
	hopes = hopes.filter(({ isSo, resolve }) => !isSo() || resolve(true));
	if (!step) return;
	facts.caughtUp ||= wireState() === 'catching_up';
	const seen = STEPS[step - 1].seen();
	if (!seen) return;
	tell('seen', `✓ Seen: ${seen}.`);
	if (seenSteps.has(step)) return;
	seenSteps.add(step);
	showTicks();
	reveal();
}

function showTicks() {
	document.querySelectorAll('.tour nav a').forEach((link, index) => {
		const name = STEPS[index] && byId(`step-${index + 1}`).querySelector('h2').textContent;
		if (index + 1 === step) link.setAttribute('aria-current', 'step');
		else link.removeAttribute('aria-current');
		if (!name) return;
		const isSeen = seenSteps.has(index + 1);
		link.classList.toggle('ticked', isSeen);
		link.setAttribute('aria-label', isSeen ? `${name}, seen` : name);
	});
}

// Shows what there is to see, and why.
function reveal() {
	const answer = byId(`step-${step}`).querySelector('details');
	answer.open = true;
	byId('tour-text').scrollTop = answer.offsetTop;
	showPanels();
}

function showPanels() {
	const { panels } = STEPS[step - 1];
	for (const panel of document.querySelectorAll('main > section')) panel.classList.toggle('meant', panels.includes(panel.classList[0]));
	document.querySelector('.meant').scrollIntoView();
	for (const list of [wire, byId('events')]) list.scrollTop = list.scrollHeight;
}

const canDo = () => !STEPS[step - 1].lab || hasLab;

// The address says which step is open: /#4 is the fourth.
function showStep() {
	const wanted = Number(location.hash.slice(1));
	step = STEPS[wanted - 1] ? wanted : 0;
	facts = {};
	document.body.classList.toggle('touring', step > 0);
	document.body.dataset.step = step;
	byId('tour').hidden = step === 0;
	byId('invitation').hidden = step > 0;
	for (const panel of document.querySelectorAll('.meant')) panel.classList.remove('meant');
	if (!step) return scrollTo(0, 0);
	document.querySelectorAll('.step').forEach((article, index) => { article.hidden = index + 1 !== step; });
	byId('tour-text').scrollTop = 0;
	byId('tour-back').disabled = step === 1;
	show('tour-next', step === STEPS.length ? 'End' : 'Next');
	showDo();
	showTicks();
	showPanels();
	drawTour();
}

function showDo() {
	show('tour-do', canDo() ? 'Do it' : 'Copy the command');
	const hint = step === 3 && !navigator.locks ? 'Tabs are counted on localhost and over HTTPS alone: look for “another has it”.'
		: canDo() ? '' : 'This server was started without `--lab`, so it takes a terminal.';
	tell('seen', hint);
}

async function doIt() {
	const { act, watch } = STEPS[step - 1];
	const [begun, button] = [step, byId('tour-do')];
	if (!canDo()) return copy(button, byId(`step-${step}`).querySelector('.command').textContent);
	facts = {};
	tell('seen', `Watch ${watch}.`);
	showPanels();
	const { error } = await act();
	if (error && step === begun) tell('seen', `It was not done: ${error}.`);
}

function go(to) {
	location.hash = STEPS[to - 1] ? to : '';
}

on('tour-do', 'click', doIt);
on('tour-back', 'click', () => go(step - 1));
on('tour-next', 'click', () => go(step + 1));
// Who uses the keyboard goes on where the step begins.
addEventListener('hashchange', () => {
	showStep();
	byId(step ? 'tour-text' : 'tour-open').focus({ preventScroll: true });
});

// --- Start ---

const streamChoice = byId('stream');

// When somebody is about to choose.
function listTopics() {
	const names = topic ? [topic] : Object.keys(statecast.document ?? {});
	const option = (name) => new Option(name ? `/events/${name}` : '/events', name, false, name === (topic ?? ''));
	streamChoice.replaceChildren(...['', ...names].map(option));
}
for (const name of ['pointerenter', 'focus']) on('stream', name, listTopics);
on('stream', 'change', () => {
	query.delete('topic');
	if (streamChoice.value) query.set('topic', streamChoice.value);
	location.search = query;
});

if (topic) topicField.value = topic;

// Listens to one more kind of one-off events.
function listenTo(name) {
	names.add(name);
	statecast.on?.(name, () => {});
}

// Follows the stream, or says that it may not.
function connect() {
	statecast.close?.();
	if (needs.read && !may.read) {
		statecast = { ...NOBODY, state: 'closed', reason: 'reading needs a token, which goes into the field below' };
		addPeriod('closed');
		happen(...explanation());
		return showState();
	}
	const token = needs.read ? `?token=${encodeURIComponent(tokenField.value)}` : '';
	stream = path('events', topic) + token;
	statecast = new Statecast(stream, { events: [...names] });
	for (const [name, listener] of listeners) statecast.on(name, listener);
	happen(...explanation());
	showState();
}

// A token in the page's address is kept, and taken out of it.
tokenField.value = query.get('token') ?? sessionStorage.getItem('token') ?? '';
if (query.has('token')) {
	sessionStorage.setItem('token', tokenField.value);
	query.delete('token');
	history.replaceState(null, '', `${location.pathname}${query.size ? `?${query}` : ''}${location.hash}`);
}

listTopics();
showCommands();
showForm();
showState();
showStep();
askWhatIsAllowed().then(connect);
showLab();
countTabs().then(draw);
