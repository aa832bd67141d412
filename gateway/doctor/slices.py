"""Checks of slices: may a cache share a running one, does it come as it is made, does it last."""

import time

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.greeting import Greeting
from gateway.doctor.probe import Open, Probe
from gateway.doctor.streams import NO_BUFFER, check_idle, check_type, refused
from gateway.protocol import slice

HELD_SECONDS = slice.HELD_SECONDS + 1.0
"""Who asks in a slice's last seconds is held until it is over; and a second for the way."""

_WATCHED = 2
"""Slices of a quiet channel: when the first is over too soon, the next one has all its time."""

_UNCHANGED = (
    "NGINX: no add_header Cache-Control; no expires; for /slices/",
    "Varnish: no set resp.http.Cache-Control for /slices/",
)


def current_slice(greeting: Greeting) -> tuple[int, float]:
    """Return the number of the slice that runs now, and how many seconds are left of it."""
    number, gone = divmod(time.time() + greeting.ahead_seconds, greeting.slice_seconds)
    return int(number), greeting.slice_seconds - gone


async def check_slices(
    probe: Probe, greeting: Greeting, channel: str, patience: float
) -> list[Finding]:
    """Follow the current slice by both its addresses."""
    found: list[Finding] = []
    number, _ = current_slice(greeting)
    for path in (f"/slices/current/{channel}", f"/slices/{greeting.epoch}/{number}/{channel}"):
        async with probe.stream(
            path, patience + HELD_SECONDS, accept_encoding="identity"
        ) as stream:
            one = await _check(stream, patience)
        if one is not None and one.text not in {known.text for known in found}:
            found.append(one)
    bad = [one for one in found if one.mend]
    return (
        bad
        or found[:1]
        or [ok("slices", "the current slice cannot be vouched for; ask again after it")]
    )


async def _check(stream: Open | None, patience: float) -> Finding | None:
    """Judge one slice; None when the gateway cannot vouch for it, or it was over meanwhile."""
    if stream is None or stream.status != 200:
        return _refusal(stream)
    if wrong := check_type(stream):
        return wrong[0]
    await stream.read(patience, lambda body: b"\n\n" in body)
    if not stream.body:
        return fault("slices", "a running slice is held back", *NO_BUFFER)
    if b"event: gap" in stream.body or b"event: unavailable" in stream.body:
        return None
    return _shared(stream.headers.get("Cache-Control", ""))


def _refusal(stream: Open | None) -> Finding | None:
    """Say what it means that there is no slice; None when the gateway itself has none."""
    if stream is None:
        return fault("slices", "no head of a slice in time", *NO_BUFFER)
    if stream.status in (502, 503, 504):
        return refused(stream)
    if stream.status in (404, 410) and "json" in stream.headers.get("Content-Type", ""):
        return None
    return warning("slices", f"slices answer {stream.status}",
                   "NGINX: location /slices/ { proxy_pass http://gateway; }",
                   "Varnish: /slices/ among the paths that are passed on")  # fmt: skip


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
            *_UNCHANGED,
        )
    return ok("slices", "the current slice comes as it is made, and may be shared")


async def check_quiet_slice(
    probe: Probe, greeting: Greeting, channel: str, patience: float, idle: float
) -> list[Finding]:
    """Watch a slice of a channel that says nothing: nothing but its end may end it.

    The next one is watched, too, where the first cannot be vouched for, or ends before the time
    is over.
    """
    number, _ = current_slice(greeting)
    for path in [f"/slices/{greeting.epoch}/{number + n}/{channel}" for n in range(_WATCHED)]:
        async with probe.stream(
            path, patience + HELD_SECONDS, accept_encoding="identity"
        ) as stream:
            if stream is None or stream.status != 200:
                if refusal := _refusal(stream):
                    return [refusal]
                continue
            await stream.read(idle)
        if b"event: end" not in stream.body:
            found = check_idle(stream, "a quiet slice", idle)
            return [found] if found.mend else []
    return []
