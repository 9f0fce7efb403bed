"""Reads a stream with a client that others wrote, and prints each event that it dispatches: read.py CLIENT URL.

A line of JSON for each: name, data, id. It ends at a heartbeat. The clients are used as their own first example does.
"""

import asyncio
import json
import sys


def tell(name, data, id):
    print(json.dumps([name, data, id or ""]), flush=True)
    if name == "heartbeat":
        sys.exit()


def tell_lines(lines):
    """What people write who need no client."""
    event = {}
    for line in lines:
        if line:
            field, _, value = line.partition(": ")
            event[field] = event[field] + "\n" + value if field == "data" and field in event else value
        else:
            tell(event.get("event"), event.get("data"), event.get("id"))
            event = {}


def with_urllib(url):
    from urllib.request import urlopen

    tell_lines(line.decode().removesuffix("\n") for line in urlopen(url))


def with_requests(url):
    import requests

    tell_lines(requests.get(url, stream=True).iter_lines(chunk_size=1, decode_unicode=True))


def with_httpx(url):
    import httpx

    with httpx.stream("GET", url, timeout=None) as answer:
        tell_lines(answer.iter_lines())


def with_httpx_sse(url):
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(timeout=None) as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            tell(event.event, event.data, event.id)


def with_sseclient(url):
    from sseclient import SSEClient

    for event in SSEClient(url):
        tell(event.event, event.data, event.id)


def with_sseclient_py(url):
    import requests
    from sseclient import SSEClient

    for event in SSEClient(requests.get(url, stream=True, headers={"Accept": "text/event-stream"})).events():
        tell(event.event, event.data, event.id)


def with_requests_sse(url):
    from requests_sse import EventSource

    with EventSource(url) as source:
        for event in source:
            tell(event.type, event.data, event.last_event_id)


def with_aiohttp_sse_client(url):
    from aiohttp_sse_client.client import EventSource

    async def read():
        async with EventSource(url) as source:
            async for event in source:
                tell(event.type, event.data, event.last_event_id)

    asyncio.run(read())


def with_launchdarkly_eventsource(url):
    from ld_eventsource import SSEClient
    from ld_eventsource.config import ConnectStrategy

    for event in SSEClient(ConnectStrategy.http(url)).events:
        tell(event.event, event.data, event.last_event_id)


client, url = sys.argv[1:]
globals()["with_" + client.replace("-", "_")](url)
