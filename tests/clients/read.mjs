// Reads a stream with a client that others wrote, and prints each event that it dispatches: CLIENT URL.
//
// A line of JSON for each: name, data, id. It ends at a heartbeat. The clients are used as their own first example does.

const [client, url] = process.argv.slice(-2);
const names = ['hello', 'init', 'update', 'alert', 'heartbeat', 'message'];

function tell(name, data, id) {
	console.log(JSON.stringify([name, data, id ?? '']));
	if (name === 'heartbeat') process.exit();
}

// What the browser has, and those that do as it does.
function listen(source) {
	for (const name of names) source.addEventListener(name, (event) => tell(event.type, event.data, event.lastEventId));
}

const clients = {
	// What people write who need no client.
	async fetch() {
		let text = '';
		for await (const piece of (await fetch(url)).body.pipeThrough(new TextDecoderStream())) {
			const blocks = (text + piece).split('\n\n');
			text = blocks.pop();
			for (const block of blocks) {
				const of = (field) => block.split('\n').filter((line) => line.startsWith(`${field}: `)).map((line) => line.slice(field.length + 2)).join('\n');
				tell(of('event'), of('data'), of('id'));
			}
		}
	},
	async 'eventsource-2'() {
		const { default: EventSource } = await import('eventsource-2');
		listen(new EventSource(url));
	},
	async eventsource() {
		const { EventSource } = await import('eventsource');
		listen(new EventSource(url));
	},
	async 'eventsource-parser'() {
		const { EventSourceParserStream } = await import('eventsource-parser/stream');
		const answer = await fetch(url);
		for await (const { event, data, id } of answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())) tell(event, data, id);
	},
	async 'eventsource-client'() {
		const { createEventSource } = await import('eventsource-client');
		for await (const { event, data, id } of createEventSource(url)) tell(event, data, id);
	},
	async 'launchdarkly-eventsource'() {
		const { EventSource } = await import('launchdarkly-eventsource');
		listen(new EventSource(url));
	},
	async 'fetch-event-source'() {
		globalThis.window = globalThis; // It is made for browsers.
		const { fetchEventSource } = await import('@microsoft/fetch-event-source');
		await fetchEventSource(url, { openWhenHidden: true, onmessage: ({ event, data, id }) => tell(event, data, id) });
	},
};

await clients[client]();
