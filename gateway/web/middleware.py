"""What all answers have in common: problems for errors, and who may read from other sites."""

import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.protocol.errors import GatewayError
from gateway.web.problem import problem, problem_of

_log = logging.getLogger(__name__)
_PUBLIC = ("events", "snapshots", "history", "slices", "openapi.json", "client.js")
_FOR_ANY_SITE = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag, Retry-After, Age",
    # So that a page of another site can tell whether it speaks HTTP/2.
    "Timing-Allow-Origin": "*",
}
_SAFE = ("GET", "HEAD", "OPTIONS")


def complete_heads(
    base_path: str, draining: Callable[[], bool]
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return what completes each head before it is sent.

    Pages of any site may read public answers. While the worker drains, a connection ends with its
    answer: over one that is kept, clients and proxies would come back to the worker that stops.
    """

    async def complete(request: web.Request, response: web.StreamResponse) -> None:
        part = request.path.removeprefix(base_path).lstrip("/").partition("/")[0]
        if part in _PUBLIC:
            response.headers.update(_FOR_ANY_SITE)
        if draining():
            response.headers["Connection"] = "close"
            response.force_close()

    return complete


def count_requests(requests: Counter[str], base_path: str) -> Middleware:
    """Return what counts requests as they come, by the fixed beginning of their route."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        # What no route knows is one number: whoever makes up paths must not make up counters.
        route = resource.canonical.removeprefix(base_path) if resource else "other"
        requests[route.partition("/{")[0] or "/"] += 1
        return await handler(request)

    return count


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into problems, and refuse what other sites' pages would write."""
    try:
        if request.method not in _SAFE and _is_cross_site(request):
            # A page of another site must not publish through its reader's browser.
            return problem(403, "Cross-site", "other sites' pages may read, not write")
        return await handler(request)
    except GatewayError as error:
        return problem_of(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        detail = f"{request.method} {request.path}: {error.reason.lower()}"
        return problem(error.status, error.reason, detail, headers=allow)
    except Exception:
        _log.exception("%s %s", request.method, request.rel_url.path)
        return problem(500, "Internal error", "the gateway failed; its log says why")


def _is_cross_site(request: web.Request) -> bool:
    """Tell whether a browser sends this for a page of another site; other clients never do."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "cross-site"
    # Over plain HTTP to another machine browsers tell the page's origin only (`null` is none).
    origin = request.headers.get("Origin")
    return origin is not None and _host(origin.partition("://")[2]) != _host(request.host)


def _host(authority: str) -> str:
    """Return an authority without its port: like a site, which is the same on every port."""
    return re.sub(r":[0-9]*\Z", "", authority).lower()


async def preflight(request: web.Request) -> web.StreamResponse:
    """Answer OPTIONS of what may be read from any site."""
    return web.Response(
        status=204,
        headers={
            "Allow": "GET, HEAD, OPTIONS",
            "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": "Last-Event-ID, If-None-Match, Cache-Control",
            "Access-Control-Max-Age": "86400",
        },
    )
