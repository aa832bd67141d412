"""Looks for caches that keep what says no-store; only their own headers can tell."""

import asyncio
from collections.abc import Mapping

from gateway.doctor.finding import Finding, fault, ok
from gateway.doctor.greeting import Greeting
from gateway.doctor.probe import Answer, Probe
from gateway.doctor.slices import current_slice

_AHEAD = 1000
"""Slices: far enough that only a doctor asks, and that it has not begun when it is asked again."""

_PAUSE_SECONDS = 1.1
"""Between asking twice: `Age` counts whole seconds."""

_MEND = (
    "NGINX: proxy_ignore_headers Vary;  and no other header, or proxy_cache_valid overrules it",
    'Varnish: if (beresp.http.Cache-Control ~ "no-store") { set beresp.uncacheable = true; '
    "set beresp.ttl = 0s; return (deliver); }  in vcl_backend_response",
    "CDN: no minimum life, no rule of its own for errors; Cache-Control is followed",
)


async def check_no_store(probe: Probe, greeting: Greeting, channel: str) -> list[Finding]:
    """Ask twice for what the gateway lets nobody keep, and see whether the second is the first.

    A slice that has not begun, a page that cannot be; and the snapshot, when its channel is too
    busy to be kept.
    """
    number, _ = current_slice(greeting)
    paths = (
        f"/slices/{greeting.epoch}/{number + _AHEAD}/{channel}",
        f"/history/{channel}?limit=0",
        f"/snapshots/{channel}",
    )
    answers = [await _ask(probe, paths)]
    await asyncio.sleep(_PAUSE_SECONDS)
    answers.append(await _ask(probe, paths))
    kept = {
        path: answer
        for path, *asked in zip(paths, *answers, strict=True)
        for answer in asked
        if answer.kept and "no-store" in answer.headers.get("Cache-Control", "")
    }
    return [_fault(kept) if kept else ok("no-store", "nothing keeps what says no-store")]


async def _ask(probe: Probe, paths: tuple[str, ...]) -> list[Answer]:
    return list(
        await asyncio.gather(*[probe.get(path, accept_encoding="identity") for path in paths])
    )


def _fault(kept: Mapping[str, Answer]) -> Finding:
    which = ", ".join(f"{path} ({one.status}, {_said(one)})" for path, one in kept.items())
    return fault("no-store", f"something keeps what says no-store: {which}. Whoever asked a moment "
                 "too soon, or while something was wrong, is told the same until it is forgotten",
                 *_MEND)  # fmt: skip


def _said(answer: Answer) -> str:
    return f"Age {answer.age}" if answer.age else answer.cache
