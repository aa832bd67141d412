"""The gateway as it is served, on its own event loop: it has nothing but a stream's socket left."""

from pathlib import Path

import aiohttp

from tests.clients.serving import serving
from tests.running import follow


async def test_a_served_stream_is_taken_over(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with serving(tmp_path) as gateway:

        async def is_ready() -> bool:
            async with session.get(f"{gateway.url}/readyz") as answer:
                return answer.status == 200

        while not await is_ready():
            pass
        async with follow(session, f"{gateway.url}/events/a") as stream:
            headers = stream.response.headers
            # aiohttp would have sent chunks: a body that ends with its connection is ours.
            assert headers["Connection"] == "close"
            assert "Transfer-Encoding" not in headers
            assert headers["Access-Control-Allow-Origin"] == "*"
            first = await stream.next()
            assert first is not None
            assert first.id
