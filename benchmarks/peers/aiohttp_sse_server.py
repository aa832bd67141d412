"""A server with aiohttp-sse, run as a script: a queue per stream, `send` for each event."""

import asyncio
import sys
from collections import defaultdict

import uvloop
from aiohttp import web
from aiohttp_sse import sse_response

Queue = asyncio.Queue[tuple[str, str]]
channels: defaultdict[str, set[Queue]] = defaultdict(set)
number = 0


async def stream(request: web.Request) -> web.StreamResponse:
    """Send what comes into a queue of its own; the queue is there before the head is sent."""
    queue: Queue = asyncio.Queue()
    channel = channels[request.match_info["channel"]]
    channel.add(queue)
    try:
        async with sse_response(request, sep="\n") as response:
            while response.is_connected():
                id_, data = await queue.get()
                await response.send(data, id=id_)
    finally:
        channel.discard(queue)
    return response


async def publish(request: web.Request) -> web.Response:
    """Put the body into all queues of the channel."""
    global number
    body = await request.text()
    number += 1
    event = str(number), body
    for queue in channels[request.match_info["channel"]]:
        queue.put_nowait(event)
    return web.Response(status=204)


def main() -> None:
    """Serve on the port that the command line names, until SIGTERM."""
    app = web.Application(client_max_size=8 << 20)
    app.router.add_get("/streams/{channel:.+}", stream)
    app.router.add_post("/publish/{channel:.+}", publish)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=65535,
        access_log=None,
        keepalive_timeout=3600,
        shutdown_timeout=0.1,
        handler_cancellation=True,
        loop=uvloop.new_event_loop(),
        print=None,
    )


if __name__ == "__main__":
    main()
