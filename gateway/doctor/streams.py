"""Checks of live streams and slices through whatever stands before the gateway."""

import time

import orjson

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.probe import Open, Probe
from gateway.protocol.stream_reader import EventStreamParser

_CODINGS = "gzip, deflate, br, zstd"
_NO_BUFFER = (
    "NGINX: proxy_buffering off; gzip off;  (in the location of /events and /slices/)",
    "Varnish: return (pass) for /events; do not set beresp.do_stream = false",
)


async def check_stream(probe: Probe, channel: str, patience: float, idle: float) -> list[Finding]:
    """Follow a channel: does its first block come at once, and does a quiet stream stay open."""
    async with probe.stream(f"/events/{channel}", patience, accept_encoding=_CODINGS) as stream:
        if stream is None:
            return [fault("buffering", f"no head of a stream within {patience:g} s", *_NO_BUFFER)]
        if stream.status != 200:
            return [_status(stream)]
        found = _heads(stream)
        # Compressed, it comes in parts too, but need not be read for this.
        first = await stream.read(patience, b"\n\n" if not _coded(stream) else b"")
        if not first:
            return [
                *found,
                fault("buffering", f"a stream's first block is held back for {patience:g} s or "
                      "more: events come late, and in lumps", *_NO_BUFFER),
            ]  # fmt: skip
        found.append(ok("buffering", "a stream's first block comes at once"))
        if not _coded(stream):
            found.append(_first_block(first))
        found.append(await _idle(stream, idle))
        return found


def _status(stream: Open) -> Finding:
    if stream.status in (502, 503, 504):
        return fault(
            "dead-origin",
            f"a stream answers {stream.status}: an EventSource that gets this never comes back, "
            "not even when all is well again",
            'NGINX: error_page 502 503 504 = @unavailable;  with  return 200 "retry: 2000\\n\\n"  '
            "and default_type text/event-stream;  (see nginx/nginx.conf)",
            "Varnish: sub vcl_backend_error of nginx/varnish.vcl",
        )
    return fault("stream", f"a stream answers {stream.status} in place of 200",
                 "pass /events/… on to the gateway as it is")  # fmt: skip


def _coded(stream: Open) -> bool:
    return "Content-Encoding" in stream.headers


def _heads(stream: Open) -> list[Finding]:
    found = []
    headers = stream.headers
    if not headers.get("Content-Type", "").startswith("text/event-stream"):
        found.append(fault("content-type", f"a stream is {headers.get('Content-Type')!r}",
                           "NGINX: no default_type in the location of /events"))  # fmt: skip
    if "no-transform" in headers.get("Cache-Control", ""):
        found.append(ok("no-transform", "proxies on the way are told to change nothing"))
    else:
        found.append(fault(
            "no-transform",
            "a stream's Cache-Control lacks no-transform: proxies may compress it and hold it back",
            "NGINX: no proxy_hide_header Cache-Control; no add_header Cache-Control; for /events",
        ))  # fmt: skip
    if not _coded(stream):
        found.append(ok("stream-compression", "the stream is not compressed"))
    elif "accept-encoding" in headers.get("Vary", "").lower():
        found.append(ok("stream-compression", f"the gateway sends {headers['Content-Encoding']}"))
    else:
        found.append(fault(
            "stream-compression",
            f"something on the way compresses streams ({headers['Content-Encoding']}), which holds "
            "events back",
            "NGINX: gzip off;  or no text/event-stream in gzip_types",
            "Varnish: no beresp.do_gzip for text/event-stream",
        ))  # fmt: skip
    found.append(_cors(headers.get("Access-Control-Allow-Origin")))
    return found


def _cors(allowed: str | None) -> Finding:
    if allowed == "*":
        return ok("cors", "pages of any site may read")
    return fault("cors", "Access-Control-Allow-Origin is not *: pages of other sites cannot read",
                 "NGINX: no proxy_hide_header Access-Control-Allow-Origin;")  # fmt: skip


def _first_block(body: bytes) -> Finding:
    blocks = EventStreamParser().feed(body)
    first = blocks[0] if blocks else None
    if first is None or first.retry_ms is None or not first.id:
        return fault("first-block", "the first block lacks retry: or id:, so a reader that is cut "
                     "off at once does not know where to go on",
                     "pass /events/… on to this gateway, unchanged")  # fmt: skip
    return ok("first-block", f"retry: {first.retry_ms} and id: {first.id}")


async def _idle(stream: Open, seconds: float) -> Finding:
    await stream.read(seconds)
    if not stream.closed:
        return ok("idle", f"a quiet stream is open after {seconds:g} s")
    lasted = time.monotonic() - stream.began
    return fault(
        "idle",
        f"a quiet stream was cut after {lasted:.0f} s",
        "NGINX: proxy_read_timeout 60s;  (above streams.heartbeat_seconds)",
        "Varnish: .between_bytes_timeout = 60s;",
        "or a shorter streams.heartbeat_seconds in the gateway",
    )


async def check_slices(probe: Probe, channel: str, patience: float) -> list[Finding]:
    """Follow the current slice: may a cache share it, and does it come as it is made."""
    for path in (f"/slices/current/{channel}", await _numbered(probe, channel)):
        # It may be held for the last two seconds of the one before.
        async with probe.stream(path, patience + 3, accept_encoding="identity") as stream:
            if stream is None:
                return [fault("slices", "no head of a slice in time", *_NO_BUFFER)]
            if stream.status in (502, 503, 504):
                return [_status(stream)]
            if stream.status != 200:
                return [warning("slices", f"slices answer {stream.status}", "pass /slices/ on")]
            first = await stream.read(patience, b"\n\n")
            if not first:
                return [fault("slices", "a running slice is held back", *_NO_BUFFER)]
            if b"event: gap" not in first:
                return [_shared(stream.headers.get("Cache-Control", ""))]
    return [ok("slices", "the current slice cannot be vouched for; ask again after it")]


async def _numbered(probe: Probe, channel: str) -> str:
    """Return the path of the slice of now that names its epoch: it is there from the first on."""
    snapshot = await probe.get(f"/snapshots/{channel}", accept_encoding="identity")
    try:
        document = orjson.loads(snapshot.body)
        number = int(snapshot.at) // int(document["slice_seconds"])
        return f"/slices/{document['epoch']}/{number}/{channel}"
    except (ValueError, KeyError, TypeError):
        return f"/slices/current/{channel}"


def _shared(control: str) -> Finding:
    if control.startswith("no-store"):
        return fault(
            "http-1.0",
            "the gateway is asked over HTTP/1.0, where a stream that was cut off looks like one "
            "that ended: slices cannot be cached, and connections not be used again",
            'NGINX: proxy_http_version 1.1; proxy_set_header Connection "";',
        )
    if "stale-while-revalidate=0" not in control:
        return fault(
            "slices",
            f"Cache-Control of a slice became {control!r}: caches may play it again afterwards",
            "pass Cache-Control on unchanged",
        )
    return ok("slices", "the current slice comes as it is made, and may be shared")
