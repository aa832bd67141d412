"""Checks of live streams through whatever stands before the gateway."""

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.probe import EVENT_STREAM, Open, Probe
from gateway.protocol.stream_reader import EventStreamParser

_CODINGS = "gzip, deflate, br, zstd"
NO_BUFFER = (
    "NGINX: proxy_buffering off; gzip off;  (in the locations of /events and /slices/)",
    "Varnish: return (pass) for /events; no set beresp.do_stream = false;",
)
_TIMEOUTS = (
    "the gateway: streams.heartbeat_seconds below every time limit on the way",
    "NGINX: proxy_read_timeout 60s;  (in the locations of /events and /slices/)",
    "Varnish: .between_bytes_timeout = 60s;  (in the backend)",
    "CDN: the time limit between bytes; CloudFront's is 30 s unless set, Fastly's is to be set "
    "(docs/cdn.md)",
)


async def check_stream(probe: Probe, channel: str, patience: float, idle: float) -> list[Finding]:
    """Follow a channel that says nothing: does its first block come at once, does it stay open."""
    async with probe.stream(f"/events/{channel}", patience, accept_encoding=_CODINGS) as stream:
        if stream is None:
            return [fault("buffering", f"no head of a stream within {patience:g} s", *NO_BUFFER)]
        if stream.status != 200:
            return [refused(stream)]
        # Compressed, it comes in parts too, but need not be read for this.
        await stream.read(patience, bool if stream.coded else lambda body: b"\n\n" in body)
        prompt = bool(stream.body)
        await stream.read(idle)
        found = [*_heads(stream), _buffering(stream, patience, prompt=prompt)]
        if prompt and not stream.coded:
            found.append(_first_block(stream.body))
        return [*found, check_idle(stream, "a quiet stream", idle)]


def refused(stream: Open) -> Finding:
    """Say what it means that a stream is not answered with 200."""
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
                 "NGINX: location /events { proxy_pass http://gateway; }",
                 "Varnish: return (pass) for /events, not synth()")  # fmt: skip


def _heads(stream: Open) -> list[Finding]:
    found = check_type(stream)
    if "no-transform" in stream.headers.get("Cache-Control", ""):
        found.append(ok("no-transform", "proxies on the way are told to change nothing"))
    else:
        found.append(fault(
            "no-transform",
            "a stream's Cache-Control lacks no-transform: proxies may compress it and hold it back",
            "NGINX: no proxy_hide_header Cache-Control; no add_header Cache-Control; for /events",
            "Varnish: no set resp.http.Cache-Control for /events",
        ))  # fmt: skip
    return [*found, _compression(stream), _cors(stream)]


def check_type(stream: Open) -> list[Finding]:
    """Find fault with a stream that does not say that it is one."""
    kind = stream.headers.get("Content-Type", "")
    if kind.startswith(EVENT_STREAM):
        return []
    return [fault("content-type", f"a stream says that it is {kind!r}: an EventSource gives up",
                  "NGINX: no proxy_hide_header Content-Type; for /events",
                  "Varnish: no set resp.http.Content-Type for /events")]  # fmt: skip


def _compression(stream: Open) -> Finding:
    if not stream.coded:
        return ok("stream-compression", "the stream is not compressed")
    coding = stream.headers["Content-Encoding"]
    if "accept-encoding" in stream.headers.get("Vary", "").lower():
        return ok("stream-compression", f"the gateway sends {coding}")
    return fault(
        "stream-compression",
        f"something on the way compresses streams ({coding}), which holds events back",
        "NGINX: gzip off;  or no text/event-stream in gzip_types",
        "Varnish: no beresp.do_gzip for text/event-stream",
    )


def _cors(stream: Open) -> Finding:
    if stream.headers.get("Access-Control-Allow-Origin") == "*":
        return ok("cors", "pages of any site may read")
    return fault("cors", "Access-Control-Allow-Origin is not *: pages of other sites cannot read",
                 "NGINX: no proxy_hide_header Access-Control-Allow-Origin;",
                 "Varnish: no unset resp.http.Access-Control-Allow-Origin;")  # fmt: skip


def _buffering(stream: Open, patience: float, *, prompt: bool) -> Finding:
    if prompt:
        return ok("buffering", "a stream's first block comes at once")
    if stream.body and not stream.closed:
        return warning(
            "buffering",
            f"a quiet stream's first block comes only after {stream.arrivals()[0]:.0f} s, together "
            "with the next thing said: so do the events that a reader who comes back lacks",
            NO_BUFFER[0],
            'Varnish (7.1 does this): lead /events past it, or streams.transport = "response" in '
            "the gateway",
            "--publish-url tells whether single events are held back, too",
        )
    return fault(
        "buffering",
        f"a stream's first block is held back for {patience:g} s or more: events come late, and "
        "in lumps",
        *NO_BUFFER,
    )


def _first_block(body: bytes) -> Finding:
    blocks = EventStreamParser().feed(body)
    first = blocks[0] if blocks else None
    if first is None or first.retry_ms is None or not first.id:
        return fault("first-block", "the first block lacks retry: or id:, so a reader that is cut "
                     "off at once does not know where to go on",
                     "NGINX: no sub_filter for text/event-stream",
                     "pass /events/… on to this gateway, unchanged")  # fmt: skip
    return ok("first-block", f"retry: {first.retry_ms} and id: {first.id}")


def check_idle(stream: Open, what: str, seconds: float) -> Finding:
    """Judge a stream that was watched for some seconds, or until something cut it."""
    if b"event: unavailable" in stream.body:
        return warning("idle", f"{what} was ended by the gateway itself: it cannot serve it now",
                       "try again when the gateway is ready (/readyz)")  # fmt: skip
    beats = stream.arrivals()[1:]
    if stream.closed:
        when = "between two heartbeats" if beats else "before a heartbeat came"
        return fault(
            "idle",
            f"{what} was cut after {stream.closed_after:.1f} s, {when}: the heartbeat "
            "(streams.heartbeat_seconds) must be shorter than the time limit that cut it",
            *_TIMEOUTS,
        )
    beat = f"a heartbeat after {beats[0]:.0f} s" if beats else "no heartbeat yet (--idle)"
    return ok("idle", f"{what} is open after {seconds:g} s, with {beat}")
