"""`/openapi.json`: this interface, described for programs."""

from importlib.resources import files

from aiohttp import web

from gateway.protocol.etag import AnyTag, EntityTag, digest_body, read_if_none_match
from gateway.web.request import read_query


class DescriptionHandler:
    """The handler of `/openapi.json`, a file of the package that is read once."""

    def __init__(self) -> None:
        self._body = (files("gateway.web") / "static" / "openapi.json").read_bytes()
        self._tag = EntityTag(digest_body(self._body))

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Return the document, or 304 when the caller has it."""
        read_query(request)
        headers = {"Cache-Control": "no-cache", "ETag": str(self._tag)}
        if self._is_held(request):
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._body, content_type="application/json", headers=headers)

    def _is_held(self, request: web.Request) -> bool:
        named = read_if_none_match(",".join(request.headers.getall("If-None-Match", [])))
        # Weak comparison: RFC 9110 13.1.2.
        return isinstance(named, AnyTag) or any(tag.opaque == self._tag.opaque for tag in named)
