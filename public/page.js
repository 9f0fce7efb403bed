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
const STANDARD = 'https://html.spec.whatwg.org/multipage/server-sent-events.html';

const byId = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const topic = query.get('topic');
const path = (of, name) => (name ? `${of}/${encodeURIComponent(name)}` : of);
// Relative, for a page below a proxy's path.
const absolute = (relative) => new URL(relative, document.baseURI);
const readToken = query.has('token') ? `?token=${encodeURIComponent(query.get('token'))}` : '';

const stream = path('events', topic) + readToken;
// More events: ?event=chat&event=alert
const statecast = new Statecast(stream, { events: ['message', ...query.getAll('event')] });

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const show = (id, text) => setText(byId(id), text);
const on = (id, event, listener) => byId(id).addEventListener(event, listener);
const count = (n) => n.toLocaleString('en');
const seconds = (ms) => Math.max(0, Math.round(ms / 1000));

function element(name, className, ...content) {
	const made = document.createElement(name);
	if (className) made.className = className;
	made.append(...content);
	return made;
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
	lastDrawTook = performance.now() - start;
}

// Adds what came below, as in a terminal, and follows it unless somebody has scrolled up.
function append(list, items, limit) {
	const follows = list.scrollTop + list.clientHeight > list.scrollHeight - 40;
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
	const [text, anchor] = explanation();
	show('happening', text);
	byId('standard').href = anchor.startsWith('#') ? STANDARD + anchor : anchor;
	showCountdown();
}

function showCountdown() {
	const { retryAt } = statecast;
	setText(countdown, retryAt === null ? '' : ` in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s`);
}

// What the last transition means, and where the standard speaks of it.
function explanation() {
	const { state, reason, hello, lastEventId, leads } = statecast;
	const gap = 'The browser asked again with its last id, but the server does not have all that came after it. So it sent the whole document.';
	const begins = {
		first: 'The server answered 200 and text/event-stream, and keeps the answer open. First comes hello, then the whole document as init, with an id.',
		known: 'The browser asked again with its last id, and the server sent what came after it: nothing is missing, nothing comes twice.',
		gap,
		restart: gap,
		lagged: 'This page read too slowly, and the server does not wait: it sent the whole document.',
	}[state === 'open' && hello?.reason];
	if (begins) return [begins, hello.reason === 'first' ? '#parsing-an-event-stream' : '#the-last-event-id-header'];
	if (state === 'closed') return ['No connection is left behind that nobody reads.', '#garbage-collection'];
	if (!leads) return ['Over HTTP/1.1 a browser opens six connections to a server. So one tab has the stream and tells the others.', 'https://w3c.github.io/web-locks/'];
	if (/^nothing was/.test(reason)) return ['Not a byte for two heartbeats. A network that dies says no goodbye, so the script makes a new EventSource, with the last id in the query.', '#authoring-notes'];
	if (state === 'waiting' || /gave up/.test(reason)) return ['EventSource gives up at any answer but 200 text/event-stream, and does not say why. So the script asks with fetch, and makes a new one after a random while that grows.', '#fail-the-connection'];
	if (state === 'lost') return [`EventSource waits as long as the last retry: said, and asks again by itself, with Last-Event-ID: ${lastEventId}`, '#reestablish-the-connection'];
	return ['The browser sent a GET that accepts text/event-stream, and waits for the answer.', '#sse-processing-model'];
}

function drawReadings() {
	const { hello, leads } = statecast;
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
	tabCount = [...locks.held, ...locks.pending].filter(ours).length;
}

// Said once a state lasts.
let speaking;
function speak() {
	clearTimeout(speaking);
	speaking = setTimeout(() => show('spoken', `${word(statecast.state)}: ${statecast.reason}`), 700);
}

statecast.on('state', ({ state, reason }) => {
	showState();
	speak();
	if (state !== 'connecting') log({ name: state, data: reason, id: '' }, 'state');
	addPeriod(state);
	askClientsSoon();
	draw();
});

statecast.on('hello', () => { opened += 1; });

statecast.on('heartbeat', () => {
	heartbeatAt = Date.now();
	if (!matchMedia('(prefers-reduced-motion: reduce)').matches) byId('lamp').animate([{}, { scale: 1.25 }, {}], 500);
});

setInterval(() => {
	[eventsPerSecond, eventsThisSecond] = [eventsThisSecond, 0];
	if (document.hidden) return;
	showCountdown();
	countTabs();
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

statecast.on('change', ({ patch }) => {
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
	let note = isObject(now) ? `${count(size)} ${topic ? 'keys' : 'topics'}` : '';
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

statecast.on('event', (event) => {
	if (event.name === 'heartbeat') return;
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
		const hello = /^data: \{"client":(\d+),/.exec(line.text.replaceAll('¦', ''));
		if (hello) wireClient = Number(hello[1]);
	}
	draw();
}

function lineKind({ kind, text, isOpen }) {
	if (kind !== 'line') return kind;
	const plain = text.replaceAll('¦', '').replace('\ufeff', '');
	if (/^event: ?heartbeat$/.test(plain)) return 'heartbeat';
	if (!plain && !isOpen) return 'blank';
	return /^(retry|id|event|data)(?![^:])/.exec(plain)?.[0] ?? (plain.startsWith(':') ? 'comment' : 'unknown');
}

function drawWire() {
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
	if (fresh.length > 0) append(wire, fresh, MAX_LINES);
}

async function showWire() {
	reading = new AbortController();
	[lines, wireClient] = [[], null];
	wire.replaceChildren();
	wire.hidden = false;
	showWireButtons();
	show('wire-explains', 'Rest on a line, or use the arrow keys, to learn what it is for.');
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

on('wire-show', 'click', () => {
	if (!reading) return showWire();
	hideWire();
	wire.hidden = true;
});
on('wire-pause', 'click', () => {
	isPaused = !isPaused;
	if (!isPaused) readOn();
	showWireButtons();
});
addEventListener('pagehide', hideWire);

function explain(line) {
	if (!line || line === pointed) return;
	pointed?.classList.remove('pointed');
	pointed = line;
	line.classList.add('pointed');
	const bom = line.textContent.includes('[BOM]') ? ' A byte order mark is dropped at the beginning of a stream.' : '';
	show('wire-explains', FIELDS[line.dataset.kind] + bom);
}

on('wire', 'pointerover', ({ target }) => explain(target.closest('li')));
on('wire', 'keydown', (event) => {
	const next = { ArrowUp: 'previousElementSibling', ArrowDown: 'nextElementSibling' }[event.key];
	if (!next) return;
	event.preventDefault();
	explain(pointed?.isConnected ? pointed[next] : wire.lastElementChild);
	pointed?.scrollIntoView({ block: 'nearest' });
});

// --- Asking the server ---

const tokenField = byId('token');
// Elsewhere somebody must want it: what is refused gets into the console.
const isThisMachine = /^(localhost|.*\.localhost|127\.[\d.]+|\[::1\])$/.test(location.hostname);

// The answer's JSON, or what was wrong.
async function ask(method, address, body, type = 'application/json') {
	const headers = body === undefined ? {} : { 'Content-Type': type };
	if (tokenField.value) headers.Authorization = `Bearer ${tokenField.value}`;
	const response = await fetch(address, { method, headers, body }).catch(() => null);
	if (!response) return { error: `${location.host} does not answer` };
	const answer = await response.json().catch(() => ({}));
	if (response.ok) return { answer };
	if (response.status === 401) tokenField.hidden = tokenField.labels[0].hidden = false;
	return { error: answer.error ?? `the server answered ${response.status} without saying why` };
}

function say(id, { error }, text) {
	show(id, error ?? text);
	byId(id).classList.toggle('refused', error !== undefined);
}

function curl(method, address, body) {
	const url = absolute(address).href.replace(/^http:../, '');
	const parts = ['curl'];
	if (method !== 'POST' || body === undefined) parts.push(`-X ${method}`);
	if (tokenField.value) parts.push('-H "Authorization: Bearer $TOKEN"');
	if (body !== undefined) parts.push(`-d '${body.trim().replace(/\s*\n\s*/g, ' ').replaceAll("'", "'\\''")}'`);
	return `${parts.join(' ')} ${url.includes('?') ? `'${url}'` : url}`;
}

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

on('publish', 'submit', async (event) => {
	event.preventDefault();
	const { method, address, body, type } = wanted();
	// An event is dispatched to those who know its name.
	if (type) statecast.on(eventField.value || 'message', () => {});
	const error = fault(body, type);
	const result = error ? { error } : await ask(method, address, body, type);
	say('publish-result', result, `published as ${result.answer?.id}`);
});

on('publish', 'input', showForm);
on('publish-json', 'keydown', (event) => {
	if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('publish').requestSubmit();
});

// --- The server's clients ---

let mayAsk = isThisMachine;
let askingClients;

function askClientsSoon(delay = 100) {
	clearTimeout(askingClients);
	if (mayAsk) askingClients = setTimeout(showClients, delay);
}

async function showClients() {
	const start = performance.now();
	if (!document.hidden) {
		const { answer, error } = await ask('GET', 'clients');
		if (answer) drawClients(answer);
		else show('clients-note', error);
		byId('clients-bar').hidden = Boolean(answer);
		if (error && statecast.state === 'open') mayAsk = false;
	}
	askClientsSoon(Math.max(CLIENTS_EVERY_MS, 20 * (performance.now() - start)));
}

function drawClients(clients) {
	const ours = (id) => (id === statecast.hello?.client ? 'this page' : id === wireClient ? 'the wire' : '');
	clients.sort((one, other) => (ours(other.id) > '') - (ours(one.id) > '') || other.id - one.id);
	const left = clients.length - MAX_CLIENTS;
	show('clients-note', `${count(clients.length)} connected${left > 0 ? `, ${MAX_CLIENTS} shown` : ''}`);
	const table = byId('clients');
	const before = new Map(Array.from(table.rows, (row) => [row.dataset.client, row]));
	const rows = clients.slice(0, MAX_CLIENTS).map((client) => {
		const row = before.get(String(client.id)) ?? newClientRow(client.id);
		const since = `${seconds(Date.now() - client.connected_at)} s`;
		const stream = `/${path('events', client.topic)}`;
		const cells = [`${client.id} ${ours(client.id)}`, client.state.replace('_', ' '), stream, since, count(client.events),
			count(client.bytes), client.last_event_id ?? '–'];
		cells.forEach((text, index) => setText(row.cells[index], text));
		row.className = `${client.state} ${ours(client.id) && 'own'}`;
		row.title = `${client.address} ${client.user_agent ?? ''}`;
		return row;
	});
	// A button must not go while it is pressed.
	if (rows.some((row, index) => row !== table.rows[index]) || before.size !== rows.length) table.replaceChildren(...rows);
}

function newClientRow(id) {
	const row = element('tr', '', ...Array.from({ length: 7 }, () => element('td')));
	row.dataset.client = id;
	const button = element('button', 'small', 'End');
	button.setAttribute('aria-label', `End client ${id}`);
	button.addEventListener('click', async () => {
		await ask('DELETE', `clients/${id}`);
		askClientsSoon(0);
	});
	row.append(element('td', '', button));
	return row;
}

on('clients-ask', 'click', () => {
	mayAsk = true;
	askClientsSoon(0);
});

// --- The lab ---

function faultRow({ name, scope, parameters, does }) {
	const others = Object.keys(parameters).filter((key) => key !== 'for');
	const fields = others.map((key) => Object.assign(element('input'), { name: key, placeholder: parameters[key], size: 6 }));
	const button = element('button', 'small', name);
	button.addEventListener('click', async () => {
		const given = [...fields, ...(parameters.for ? [byId('lab-for')] : [])].filter(({ value }) => value);
		const search = given.map((field) => `${field.name}=${encodeURIComponent(field.value)}`).join('&');
		const whose = scope === 'client' ? `clients/${byId('lab-client').value || statecast.hello?.client}` : 'server';
		const address = `lab/${whose}/${name}${search && '?'}${search}`;
		show('lab-curl', curl('POST', address));
		say('lab-result', await ask('POST', address), `${name}: done`);
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
}

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

for (const code of document.querySelectorAll('.tour code')) {
	setText(code, code.textContent.replace('localhost:8080', location.host));
}
if (topic) topicField.value = topic;
if (isThisMachine) tokenField.hidden = tokenField.labels[0].hidden = true;
else byId('clients-bar').hidden = false;
listTopics();
show('empty-curl', curl('POST', path('state', topic ?? 'kitchen'), '{"temp":21.5}'));
showForm();
showState();
askClientsSoon();
showLab();
countTabs().then(draw);
