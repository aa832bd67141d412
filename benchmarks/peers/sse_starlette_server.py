"""A server with sse-starlette on uvicorn, run as a script: a queue and a generator per stream."""

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Queue = asyncio.Queue[ServerSentEvent]
channels: defaultdict[str, set[Queue]] = defaultdict(set)
number = 0


async def stream(request: Request) -> Response:
    """Answer with a generator over a queue, which is there before the head is sent."""
    queue: Queue = asyncio.Queue()
    channel = channels[request.path_params["channel"]]
    channel.add(queue)

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            while True:
                yield await queue.get()
        finally:
            channel.discard(queue)

    return EventSourceResponse(events(), sep="\n")


async def publish(request: Request) -> Response:
    """Put the body into all queues of the channel."""
    global number
    body = (await request.body()).decode()
    number += 1
    event = ServerSentEvent(body, id=str(number), sep="\n")
    for queue in channels[request.path_params["channel"]]:
        queue.put_nowait(event)
    return Response(status_code=204)


def main() -> None:
    """Serve on the port that the command line names, until SIGTERM."""
    app = Starlette(
        routes=[
            Route("/streams/{channel:path}", stream),
            Route("/publish/{channel:path}", publish, methods=["POST"]),
        ]
    )
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        backlog=65535,
        access_log=False,
        log_level="error",
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
