// page.js: this page only. Shows what statecast.js knows; everything reaches the page as text, drawn once a frame.

// Also in the page: "the last 50".
const MAX_EVENTS = 50;
const MAX_EVENT_TEXT = 300;
// Up to here, #document's text is the document's JSON. A server's document has at most 1,024 topics, a topic any number of keys.
const MAX_ROWS = 10_000;
const MAX_ROW_TEXT = 20_000;
// Rows are laid out by the chunk, and only those in view. 10,000 rows each by itself: 50 ms a frame instead of 17.
const CHUNK_ROWS = 100;
// How long a row that changed stays marked; the style sheet lets it fade.
const MARK_MS = 700;

const byId = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const topic = query.get('topic');
const path = (of, name) => (name ? `${of}/${encodeURIComponent(name)}` : of);
// Relative, so that the page also works below a proxy's path.
const absolute = (relative) => new URL(relative, document.baseURI);

const stream = path('events', topic);
// Other one-off events are shown when they are named: ?event=chat&event=alert
const statecast = new Statecast(stream, { events: ['message', ...query.getAll('event')] });

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const count = (n) => n.toLocaleString('en');

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function shorten(text, limit) {
  return text.length <= limit ? text : `${text.slice(0, limit)} … (${count(text.length)} characters, shown in part)`;
}

// --- One drawing a frame --------------------------------------------------------------------------------------------

let drawing = false;
let lastDrawTook = 0;

function draw() {
  if (drawing) return;
  drawing = true;
  // A large document takes longer than a frame to draw; three quarters of the time stay for everything else.
  if (lastDrawTook > 12) setTimeout(requestAnimationFrame, lastDrawTook * 3, drawNow);
  else requestAnimationFrame(drawNow);
}

function drawNow() {
  drawing = false;
  const start = performance.now();
  drawDocument();
  drawEvents();
  drawReadings();
  lastDrawTook = performance.now() - start;
}

// --- The connection -------------------------------------------------------------------------------------------------

const WORDS = { connecting: 'connecting', open: 'open', lost: 'lost', waiting: 'reconnecting', closed: 'closed' };
let heartbeatAt = null;
let eventCount = 0;
// Counted until the next second's reading.
let eventsThisSecond = 0;
let eventsPerSecond = 0;

const countdown = element('span');
// A screen reader says that it reconnects, not each second that passes.
countdown.setAttribute('aria-hidden', 'true');

function showState() {
  const { state, reason } = statecast;
  const view = byId('state');
  document.body.dataset.state = view.dataset.state = state;
  document.title = state === 'open' ? 'statecast' : `${WORDS[state]} – statecast`;
  view.replaceChildren(WORDS[state], countdown);
  setText(byId('reason'), reason);
  showCountdown();
}

function showCountdown() {
  const { retryAt } = statecast;
  setText(countdown, retryAt === null ? '' : ` in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s`);
}

function drawReadings() {
  const { hello } = statecast;
  setText(byId('client'), hello ? String(hello.client) : '–');
  setText(byId('last-event-id'), statecast.lastEventId || '–');
  setText(byId('count'), count(eventCount) + (eventsPerSecond > 1 ? `, ${count(eventsPerSecond)}/s` : ''));
  let heartbeat = '–';
  if (hello) heartbeat = `every ${hello.heartbeat_ms / 1000} s`;
  if (heartbeatAt) heartbeat += `, ${Math.max(0, Math.round((Date.now() - heartbeatAt) / 1000))} s ago`;
  setText(byId('heartbeat'), heartbeat);
}

statecast.on('state', ({ state, reason }) => {
  showState();
  // An open connection is worth a line when `hello` has said how it begins.
  if (state !== 'connecting' && (state !== 'open' || statecast.hello)) log({ name: state, data: reason, id: '' }, 'state');
  draw();
});

statecast.on('heartbeat', () => {
  heartbeatAt = Date.now();
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) {
    byId('lamp').animate([{ transform: 'scale(1)' }, { transform: 'scale(1.25)' }, { transform: 'scale(1)' }], 500);
  }
});

setInterval(showCountdown, 200);
setInterval(() => {
  [eventsPerSecond, eventsThisSecond] = [eventsThisSecond, 0];
  drawReadings();
}, 1000);

// --- The document ---------------------------------------------------------------------------------------------------

const view = byId('document');
// A row for each key, so that a change draws its own row and no other.
const rows = new Map();
const rowList = element('span');
let lastRow = null;
// Keys to be drawn, or all of them.
let dirtyKeys = new Set();
let allDirty = false;
// Rows that are marked, and until when. In the order of their ends.
const marked = new Map();

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
    // Some were left out for their number, and now there is room.
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
  // A line break inside of a JSON string is escaped: these are the layout's.
  const text = shorten(JSON.stringify(now[key], null, 2), MAX_ROW_TEXT).replaceAll('\n', '\n  ');
  if (row.value.data === text && !dirtyKeys.has(key)) return;
  row.value.data = text;
  // The first document is new as a whole; marks would say nothing.
  if (view.dataset.shown) mark(row.element);
}

function dropRow(key) {
  const row = rows.get(key);
  if (!row) return;
  rows.delete(key);
  marked.delete(row.element);
  const chunk = row.element.parentNode;
  row.element.remove();
  if (!chunk.hasChildNodes()) chunk.remove();
}

// JSON wants no comma after the last.
function closeRows() {
  const last = rowList.lastChild?.lastChild.row ?? null;
  if (last === lastRow) return;
  if (lastRow) lastRow.end.data = ',\n';
  if (last) last.end.data = '\n';
  lastRow = last;
}

function mark(element) {
  element.classList.add('changed');
  marked.delete(element);
  marked.set(element, performance.now() + MARK_MS);
}

setInterval(() => {
  const now = performance.now();
  for (const [element, end] of marked) {
    if (end > now) break;
    element.classList.remove('changed');
    marked.delete(element);
  }
}, 100);

function noteDocument(now) {
  const isEmpty = now === null || (isObject(now) && rows.size === 0);
  byId('empty').hidden = !isEmpty;
  const left = isObject(now) ? Object.keys(now).length - rows.size : 0;
  let note = '';
  if (isObject(now)) note = `${count(rows.size + left)} ${topic ? 'keys' : 'topics'}`;
  if (left > 0) note += `, the first ${count(MAX_ROWS)} shown`;
  if (now === null) note = 'this topic is absent';
  setText(byId('document-note'), note);
}

// --- The events -----------------------------------------------------------------------------------------------------

const list = byId('events');
const clock = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });
// Not in the list yet. Bounded, because nothing is drawn while the page is hidden.
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
  if (arrived.length === 0) return;
  list.prepend(...arrived.splice(0).reverse().map(eventRow));
  while (list.childElementCount > MAX_EVENTS) list.lastElementChild.remove();
}

function eventRow({ name, data, id, kind, at }) {
  const row = element('li', kind);
  row.dataset.event = name;
  row.dataset.id = id;
  const time = element('time', '', `${clock.format(at)}.${String(at.getMilliseconds()).padStart(3, '0')}`);
  // The browser repeats the last id on `hello`, which has none.
  row.append(time, element('b', '', name), element('code', 'id', name === 'hello' ? '' : id));
  row.append(element('span', 'data', shorten(data, MAX_EVENT_TEXT)));
  return row;
}

// --- Publishing -----------------------------------------------------------------------------------------------------

const topicField = byId('publish-topic');
const jsonField = byId('publish-json');
const result = byId('publish-result');

function curl(name, json) {
  const { protocol, host, pathname } = absolute(path('state', name));
  const scheme = protocol === 'http:' ? '' : `${protocol}//`;
  // In a shell, a quote inside quotes ends them, is written by itself, and opens them again.
  const quoted = json.trim().replace(/\s*\n\s*/g, ' ').replaceAll("'", String.raw`'\''`);
  return `curl -d '${quoted}' ${scheme}${host}${pathname}`;
}

function showCurl() {
  setText(byId('publish-curl'), curl(topicField.value, jsonField.value));
}

function fault(name, json) {
  // The server says so too, but not of `.` and `..`, which never reach it: they are steps in a path.
  if (name && (!/^[A-Za-z0-9._-]{1,64}$/.test(name) || name === '.' || name === '..')) {
    return 'a topic is 1 to 64 of A-Z a-z 0-9 . _ -, and neither . nor ..';
  }
  try {
    JSON.parse(json);
  } catch (error) {
    return `this is not JSON: ${error.message}`;
  }
  return null;
}

async function publish(name, json) {
  const address = absolute(path('state', name));
  let response;
  try {
    response = await fetch(address, { method: 'PATCH', headers: { 'Content-Type': 'application/json' }, body: json });
  } catch {
    return { text: `${location.host} does not answer`, isRefused: true };
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return { text: `published as ${answer.id}`, isRefused: false };
  return { text: answer.error ?? `the server answered ${response.status} without saying why`, isRefused: true };
}

byId('publish').addEventListener('submit', async (event) => {
  event.preventDefault();
  const [name, json] = [topicField.value, jsonField.value];
  const wrong = fault(name, json);
  const { text, isRefused } = wrong ? { text: wrong, isRefused: true } : await publish(name, json);
  setText(result, text);
  result.classList.toggle('refused', isRefused);
});

byId('publish').addEventListener('input', showCurl);
jsonField.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('publish').requestSubmit();
});

// --- Start ----------------------------------------------------------------------------------------------------------

if (topic) topicField.value = topic;
setText(byId('stream'), `GET ${absolute(stream).pathname}`);
byId('whole').hidden = !topic;
setText(byId('empty-curl'), curl(topic ?? 'kitchen', '{"temp":21.5}'));
showCurl();
showState();
