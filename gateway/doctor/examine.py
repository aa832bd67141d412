"""All checks of one public URL, in order; prints nothing."""

from dataclasses import dataclass

from gateway.doctor.answers import check_pages, check_snapshots
from gateway.doctor.finding import Finding, Level, ok, warning
from gateway.doctor.probe import Probe
from gateway.doctor.streams import check_slices, check_stream


@dataclass(frozen=True, slots=True)
class Examination:
    """What to look at. Times in seconds: `patience` for what must come at once, `idle` for a
    stream that says nothing."""

    url: str
    channel: str
    timeout: float = 10.0
    patience: float = 3.0
    idle: float = 20.0
    insecure: bool = False


async def examine(what: Examination) -> list[Finding]:
    """Return what every check found; raises NotReached when nothing answers."""
    async with Probe(what.url, timeout_seconds=what.timeout, insecure=what.insecure) as probe:
        found = [await _check_http_2(probe)]
        streams = await check_stream(probe, what.channel, what.patience, what.idle)
        found += streams
        if any(one.check == "dead-origin" for one in streams):
            return found  # All else would say the same.
        found += await check_snapshots(probe, what.channel)
        found += await check_pages(probe, what.channel)
        found += await check_slices(probe, what.channel, what.patience)
        return found


async def _check_http_2(probe: Probe) -> Finding:
    six = "browsers open six connections to a host, for all tabs, and each stream takes one"
    if probe.url.startswith("http://"):
        return warning("http2", f"without TLS browsers speak HTTP/1.1: {six}", "use https://")
    if await probe.offers_http_2():
        return ok("http2", "HTTP/2 is offered")
    return warning("http2", f"HTTP/2 is not offered: {six}", "NGINX: listen 443 ssl http2;")


def worst(found: list[Finding]) -> Level:
    """Return the worst level of them."""
    levels = {one.level for one in found}
    return next(level for level in (Level.FAULT, Level.WARNING, Level.OK) if level in levels)
