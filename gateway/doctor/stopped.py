"""Checks of what readers are told while the gateway is stopped: by those who stand before it."""

import re
from collections.abc import Mapping

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.life import read_life
from gateway.doctor.probe import Answer, Open, Probe
from gateway.doctor.streams import check_type, refused
from gateway.protocol.stream_reader import EventStreamParser

_HELD = ("1700000000000-7", "1700000000001-8")
"""Positions that readers come back with; two, for a cache would give one reader the other's."""

_SEE = (
    "NGINX: location @unavailable of nginx/nginx.conf, and the maps of nginx/unavailable.conf",
    "Varnish: sub vcl_backend_error of nginx/varnish.vcl",
)
_JSON = "application/json"


async def check_stopped(probe: Probe, channel: str, patience: float) -> list[Finding]:
    """Ask for streams as an EventSource and as a page does, and for a snapshot."""
    found: list[Finding] = []
    for path in (f"/events/{channel}", f"/slices/current/{channel}"):
        found += await check_dead_stream(probe, path, patience)
        found.append(await _fetch(probe, path))
    return [*_joined(found), await _stale(probe, channel)]


def _joined(found: list[Finding]) -> list[Finding]:
    """Return each finding once: both kinds of streams share their mistakes."""
    wrong = {one.check for one in found if one.mend}
    kept = [one for one in found if one.mend or one.check not in wrong]
    return list({(one.check, one.text): one for one in kept}.values())


async def check_dead_stream(probe: Probe, path: str, patience: float) -> list[Finding]:
    """Come back with a position, as an EventSource that has lost its stream does."""
    found: list[Finding] = []
    for held in _HELD:
        async with probe.stream(path, patience, last_event_id=held) as stream:
            if stream is None:
                return [fault("dead-origin", f"a stream is not answered within {patience:g} s",
                              "NGINX: proxy_connect_timeout 5s;",
                              "Varnish: .connect_timeout = 5s;")]  # fmt: skip
            if stream.status != 200:
                return [refused(stream)]
            await stream.read(patience)
            found = [*check_type(stream), *_words(stream, held), _kept(stream.headers)]
        if any(one.mend for one in found):
            break
    return found


def _words(stream: Open, held: str) -> list[Finding]:
    blocks = EventStreamParser(held).feed(stream.body)
    found = []
    if any(block.retry_ms for block in blocks):
        found.append(ok("dead-origin", "streams are answered with 200 and a retry:, so that "
                        "readers come back"))  # fmt: skip
    else:
        found.append(fault("dead-origin", "a stream is answered with 200, but without retry: and a "
                           "blank line: all readers come back at once", *_SEE))  # fmt: skip
    if not blocks or blocks[-1].id == held:
        found.append(ok("dead-position", "readers keep their position"))
    else:
        found.append(fault("dead-position", f"a reader that comes back with Last-Event-ID {held} "
                           f"is told the id {blocks[-1].id!r}: it loses its position, or takes "
                           "another reader's", *_SEE))  # fmt: skip
    return found


def _kept(headers: Mapping[str, str]) -> Finding:
    control = headers.get("Cache-Control", "")
    if "no-store" in control:
        return ok("dead-cache", "nothing of it may be kept")
    return fault("dead-cache", f"the outage itself may be cached (Cache-Control {control!r}), and "
                 "outlast it", 'NGINX: add_header Cache-Control "no-store" always;',
                 'Varnish: set beresp.http.Cache-Control = "no-store"; set beresp.ttl = 0s; in '
                 "vcl_backend_error")  # fmt: skip


async def _fetch(probe: Probe, path: str) -> Finding:
    """Ask as curl and `fetch` do: they are to see that it failed."""
    answer = await probe.get(path)
    if answer.status < 500:
        return fault("dead-fetch", f"whoever does not ask for an event stream is told "
                     f"{answer.status}, and takes the outage for an answer",
                     "NGINX: if ($wants_stream = 0) { return 503; }  in location @unavailable",
                     "Varnish: vcl_backend_error looks at bereq.http.Accept")  # fmt: skip
    if _cacheable(answer):
        return _kept(answer.headers)
    return ok("dead-fetch", f"whoever does not ask for an event stream is told {answer.status}")


def _cacheable(answer: Answer) -> bool:
    """Tell whether an error says that it may be kept; it is not kept without a word."""
    control = answer.headers.get("Cache-Control", "")
    return "no-store" not in control and bool(re.search(r"(max-age|s-maxage)=[1-9]", control))


async def _stale(probe: Probe, channel: str) -> Finding:
    """Ask for a snapshot in the coding that browsers ask for, then in those that few ask for."""
    for coding in ("br", "zstd", "gzip", "identity"):
        answer = await probe.get(f"/snapshots/{channel}", accept_encoding=coding)
        if answer.status == 200 and answer.headers.get("Content-Type", "").startswith(_JSON):
            return _judge_stale(answer)
    if answer.status >= 500 and not _cacheable(answer):
        return warning("stale-if-error", f"a snapshot is answered {answer.status}: the edge has "
                       "none, or none that is young enough",
                       "the setting stale_if_error_seconds: how long an outage may be",
                       "NGINX: proxy_cache for /snapshots/; no proxy_ignore_headers Cache-Control;",
                       "Varnish: set beresp.grace from stale-if-error "
                       "(nginx/varnish.vcl)")  # fmt: skip
    return fault("stale-if-error", f"a snapshot is answered {answer.status} while the gateway is "
                 "stopped: that is neither a snapshot nor an error to try again after",
                 "NGINX: no error_page for /snapshots/",
                 "Varnish: no other status than 503 in vcl_backend_error")  # fmt: skip


def _judge_stale(answer: Answer) -> Finding:
    life = read_life(answer)
    if life is not None and answer.age > life.edge_limit_seconds:
        return fault("stale-if-error", f"a snapshot is {answer.age} s old, and may be "
                     f"{life.edge_limit_seconds} s at most",
                     "NGINX: no proxy_cache_use_stale; no proxy_cache_valid",
                     "Varnish: set beresp.grace from stale-if-error alone")  # fmt: skip
    return ok("stale-if-error", f"the edge goes on with the snapshot that it has ({answer.coding})")
