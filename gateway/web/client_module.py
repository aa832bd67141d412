"""`/client.js`: the module by which pages follow a channel, as it stands in the package."""

from importlib.resources import files

from aiohttp import web

from gateway.protocol.coding import CODINGS, IDENTITY, compress, negotiate_coding
from gateway.protocol.etag import AnyTag, EntityTag, digest_body, read_if_none_match
from gateway.web.request import read_query

# Pages of many sites load it by a fixed address: an hour later all have what was deployed, and
# within the five minutes a visitor's pages share one download.
_CACHE_CONTROL = "public, max-age=300, stale-while-revalidate=3600"


class ClientModuleHandler:
    """The handler of `/client.js`; the file is read, and compressed in each coding, once."""

    def __init__(self) -> None:
        body = (files("gateway.web") / "static" / "client.js").read_bytes()
        digest = digest_body(body)
        self._variants = {
            coding: (EntityTag(f"{digest}.{coding}"), compress(coding, body)) for coding in CODINGS
        }

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Return the module, or 304 when the caller has it in whatever coding."""
        read_query(request)
        accepted = request.headers.getall("Accept-Encoding", [])
        # RFC 9110 12.5.3: what accepts nothing may be sent the plain body; it is small.
        coding = negotiate_coding(",".join(accepted) if accepted else None) or IDENTITY
        headers = {"Cache-Control": _CACHE_CONTROL, "Vary": "Accept-Encoding"}
        tag, body = self._variants[coding]
        if (held := self._held(request)) is not None:
            return web.Response(status=304, headers={**headers, "ETag": str(held)})
        headers |= {"ETag": str(tag), "X-Content-Type-Options": "nosniff"}
        if coding != IDENTITY:
            headers["Content-Encoding"] = coding
        return web.Response(
            body=body, content_type="text/javascript", charset="utf-8", headers=headers
        )

    def _held(self, request: web.Request) -> EntityTag | None:
        named = read_if_none_match(",".join(request.headers.getall("If-None-Match", [])))
        tags = [tag for tag, _ in self._variants.values()]
        if isinstance(named, AnyTag):
            return tags[0]
        # Weak comparison: RFC 9110 13.1.2.
        opaque = {tag.opaque for tag in named}
        return next((tag for tag in tags if tag.opaque in opaque), None)
