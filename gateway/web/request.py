"""What handlers read out of a request: query parameters, channel, namespace."""

from collections.abc import Mapping

from aiohttp import web

from gateway.protocol.cache_control import NO_STORE
from gateway.protocol.channel import CHANNEL_LIMIT_BYTES, check_channel, namespace_of
from gateway.protocol.errors import InvalidField, ProtectedNamespace, TooLarge
from gateway.protocol.namespace import Namespace


def read_query(
    request: web.Request, *allowed: str, repeated: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the query's parameters; unknown or doubled ones raise InvalidField.

    Each spelling of a URL is a cache entry of its own: few are accepted. Those that may be
    `repeated` are left to the caller.
    """
    values: dict[str, str] = {}
    for name, value in request.query.items():
        if name in repeated:
            continue
        if name not in allowed:
            known = ", ".join((*repeated, *allowed)) or "none"
            raise InvalidField(name[:100], value[:300], f"is no parameter here; known: {known}")
        if name in values:
            raise InvalidField(name, value[:300], "must be given once")
        values[name] = value
    return values


def read_header(request: web.Request, name: str) -> str | None:
    """Return a header's value, its lines joined as one list; None without any."""
    lines = request.headers.getall(name, [])
    return ",".join(lines) if lines else None


def check_spelling(request: web.Request) -> None:
    """Refuse a path that is spelled with percent signs; raises InvalidField.

    Nothing in the name of a channel needs one, and each spelling would be a cache entry of its own.
    An EventSource that is redirected comes back to where it was led, so it is told instead. To be
    called when the channel's name is known to be right.
    """
    raw = request.rel_url.raw_path
    if "%" in raw:
        raise InvalidField("path", raw[:300], f"must be spelled {request.path}")


def redirect_spelling(request: web.Request, channel: str) -> web.Response | None:
    """Return the way to a path's one spelling; None when it is the one.

    Generated clients send a channel's slashes as `%2F`, and each spelling would be a cache entry of
    its own, which no purge of the plain path finds. No cache keeps the redirect: one that keys by
    the decoded path would hold it in place of the answer that it leads to.
    """
    raw = request.rel_url.raw_path
    if "%" not in raw:
        return None
    # Relative, for a proxy may publish the gateway below a path that it does not know.
    within = raw.count("/") - request.path.count("/") + channel.count("/")
    if "%" in raw.rsplit("/", within + 1)[0]:
        check_spelling(request)  # What leads to the channel: it would lead to itself.
    location = "../" * within + channel
    if request.query_string:
        location += "?" + request.rel_url.raw_query_string
    return web.Response(status=308, headers={"Location": location, "Cache-Control": NO_STORE})


def read_whole(values: Mapping[str, str], name: str, default: int, limit: int) -> int:
    """Return a whole number from 1 to `limit`; raises InvalidField."""
    text = values.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= limit):
        raise InvalidField(name, text[:300], f"must be a whole number from 1 to {limit}")
    return int(text)


async def read_body(request: web.Request, limit_bytes: int, field: str = "body") -> bytes:
    """Return the request's body, decoded when it has a content coding.

    Raises TooLarge naming `field`, without reading beyond the limit, and InvalidField when the
    body cannot be decoded.
    """
    too_large = TooLarge(field, None, f"must be at most {limit_bytes} bytes")
    # What is coded may be longer than what it says.
    if "Content-Encoding" not in request.headers and (request.content_length or 0) > limit_bytes:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit_bytes:
                raise too_large
        return bytes(body)
    except web.RequestPayloadError as error:
        # Nothing more can be read of it; without this aiohttp would try, and log its failure.
        request.content.feed_eof()
        rule = "must be whole, and in the coding that Content-Encoding names"
        raise InvalidField("body", None, rule) from error


class Names:
    """Finds the namespace of what a request names, and keeps protected ones shut."""

    def __init__(
        self, namespaces: Mapping[str, Namespace], limit_bytes: int = CHANNEL_LIMIT_BYTES
    ) -> None:
        self.namespaces = namespaces
        self.limit_bytes = limit_bytes

    def channel(self, request: web.Request) -> tuple[str, Namespace]:
        """Return the path's channel and its namespace; raises InvalidField, ProtectedNamespace."""
        name = check_channel(request.match_info["channel"], limit_bytes=self.limit_bytes)
        return name, self.open(namespace_of(name, self.namespaces))

    def open(self, name: str) -> Namespace:
        """Return a namespace by name unless it is protected: nobody has rights yet."""
        namespace = self.namespaces[name]
        if namespace.protected:
            raise ProtectedNamespace(f"namespace {name} is protected")
        return namespace
