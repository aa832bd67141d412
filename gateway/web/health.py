"""`/livez`, `/readyz`, `/metrics`: what operators and their machines ask."""

from collections.abc import Callable, Mapping

import orjson
from aiohttp import web

from gateway.hub.tail import Tail
from gateway.protocol.cache_control import NO_STORE


class HealthHandler:
    """Handlers of the three; `exposition` renders the metrics and names their content type."""

    def __init__(
        self, tails: Mapping[str, Tail], exposition: Callable[[], tuple[bytes, str]]
    ) -> None:
        self.draining = False
        self._tails = tails
        self._exposition = exposition

    async def livez(self, request: web.Request) -> web.StreamResponse:
        """Say that the loop turns."""
        return web.Response(text="ok\n", headers={"Cache-Control": NO_STORE})

    async def readyz(self, request: web.Request) -> web.StreamResponse:
        """Say whether new readers should be sent here: every namespace follows the store."""
        following = {name: tail.connected for name, tail in self._tails.items()}
        ready = all(following.values()) and not self.draining
        document = {"ready": ready, "draining": self.draining, "following": following}
        return web.Response(
            status=200 if ready else 503,
            body=orjson.dumps(document),
            content_type="application/json",
            headers={"Cache-Control": NO_STORE},
        )

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Return the metrics in the exposition format."""
        body, content_type = self._exposition()
        return web.Response(
            body=body, headers={"Content-Type": content_type, "Cache-Control": NO_STORE}
        )
