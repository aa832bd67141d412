"""Ways to break the shipped NGINX configuration on purpose, each of which must find its place."""

import re
from collections.abc import Callable

Edit = Callable[[str], str]


def replaced(old: str, new: str) -> Edit:
    """Return what replaces a text wherever it stands."""

    def edit(text: str) -> str:
        assert old in text, old
        return text.replace(old, new)

    return edit


def inside(path: str, directives: str, *, without: str = "") -> Edit:
    """Return what adds directives to each of the readers' locations whose name contains `path`.

    Lines of the location that begin with one of the words in `without` are taken out.
    """
    location = re.compile(
        rf"^(        location [^\n{{]*{re.escape(path)}[^\n{{]*\{{\n)(.*?)^        \}}\n",
        re.MULTILINE | re.DOTALL,
    )
    unwanted = re.compile(rf"^\s*(?:{'|'.join(without.split())})\b[^\n]*\n", re.MULTILINE)

    def change(found: re.Match[str]) -> str:
        body = unwanted.sub("", found[2]) if without else found[2]
        assert not without or body != found[2], without
        return f"{found[1]}            {directives}\n{body}        }}\n"

    def edit(text: str) -> str:
        readers, server, rest = text.partition("# Publishers, operators")
        assert server
        readers, count = location.subn(change, readers)
        assert count, path
        return readers + server + rest

    return edit


def both(*edits: Edit) -> Edit:
    """Return what does one after the other."""

    def edit(text: str) -> str:
        for one in edits:
            text = one(text)
        return text

    return edit


def cut_out(parameter: str) -> str:
    """Return directives that take one parameter out of what the gateway is asked."""
    return f'if ($args ~ "^(.*?)&?{parameter}=[^&]*(.*)$") {{ set $args $1$2; }}'


HTML = 'default_type text/html; return 200 "<html>hello</html>";'
_HELD = "proxy_ignore_headers X-Accel-Buffering; proxy_buffering on;"
HELD_STREAMS = both(
    inside("/events", _HELD, without="proxy_buffering"),
    inside("/slices/current", _HELD, without="proxy_buffering"),
)
