"""`/console`: a page for looking inside, from files of the package."""

from importlib.resources import files

from aiohttp import web

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ConsoleHandler:
    """Handlers of the page and its assets, read once."""

    def __init__(self) -> None:
        self._files = {
            entry.name: entry.read_bytes()
            for entry in (files("gateway.web") / "static").iterdir()
            if entry.name.startswith("console.")
        }

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Return the page."""
        return self._file("console.html")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """Return one of its assets."""
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        return self._file(name)

    async def home(self, request: web.Request) -> web.StreamResponse:
        """Send a visitor of the root to the page, by a relative URL: a proxy may add a prefix."""
        last = request.path.rpartition("/")[2]
        raise web.HTTPFound(f"{last}/console" if last else "console")

    def _file(self, name: str) -> web.Response:
        return web.Response(
            body=self._files[name],
            content_type=_TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers={
                "Cache-Control": "no-cache",
                "Content-Security-Policy": _POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )
