"""All checks of one public URL, in order; prints nothing."""

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass

from gateway.doctor.delivery import Limits, check_delivery, publishing
from gateway.doctor.finding import Finding, Level, fault, ok, warning
from gateway.doctor.greeting import Greeting, NoGreeting, Who, greet
from gateway.doctor.life import check_life
from gateway.doctor.no_store import check_no_store
from gateway.doctor.pages import check_collapsing, check_long_poll, check_parameters
from gateway.doctor.probe import NotReached, Probe
from gateway.doctor.slices import check_quiet_slice, check_slices
from gateway.doctor.snapshots import check_snapshots
from gateway.doctor.stopped import check_dead_stream, check_stopped
from gateway.doctor.streams import check_stream


@dataclass(frozen=True, slots=True)
class Examination:
    """What to look at. Times in seconds: `patience` for what must come at once, `idle` for a
    stream that says nothing.

    With `publish_url` events are published to a channel of its own; with `stopped` the gateway is
    known to be away.
    """

    url: str
    channel: str
    timeout: float = 10.0
    patience: float = 3.0
    idle: float = 20.0
    insecure: bool = False
    publish_url: str = ""
    stopped: bool = False

    def own_channel(self) -> str:
        """Return the name of a channel that nobody has, in the same namespace as the asked one."""
        return f"{self.channel.partition('/')[0]}/doctor-{secrets.token_hex(8)}"


async def examine(what: Examination) -> list[Finding]:
    """Return what every check found; raises NotReached when nothing answers."""
    async with Probe(what.url, timeout_seconds=what.timeout, insecure=what.insecure) as probe:
        found = [await _check_http_2(probe)]
        quiet = what.own_channel()
        try:
            greeting, said = await greet(probe, what.channel, quiet)
        except NoGreeting as error:
            if what.stopped and error.who is not Who.GATEWAY:
                return [*found, *await check_stopped(probe, what.channel, what.timeout)]
            found.append(error.finding)
            if error.who is Who.NOBODY:
                # The little that shows: whether EventSources are lost for good.
                path = f"/events/{what.channel}"
                dead = await check_dead_stream(probe, path, what.timeout)
                found += [one for one in dead if one.check == "dead-origin"]
            return found
        if what.stopped:
            return [*found, fault("gateway", "the gateway answers: it is not stopped",
                                  "stop it first, or leave --stopped out")]  # fmt: skip
        found += [ok("gateway", f"it is the gateway, epoch {greeting.epoch}"), *said]
        return found + await _examine_all(what, probe, greeting, quiet)


async def _examine_all(
    what: Examination, probe: Probe, greeting: Greeting, quiet: str
) -> list[Finding]:
    """Run the checks side by side, for several only wait; return what they found in order."""
    channel, patience = what.channel, what.patience
    checks = {
        "stream": check_stream(probe, quiet, patience, what.idle),
        "snapshot": check_snapshots(probe, channel),
        "life": check_life(probe, channel, what.idle),
        "query": check_parameters(probe, channel),
        "collapsing": check_collapsing(probe, channel),
        "long-poll": check_long_poll(probe, greeting, quiet, what.idle),
        "slices": check_slices(probe, greeting, channel, patience),
        "no-store": check_no_store(probe, greeting, channel),
        "idle": check_quiet_slice(probe, greeting, quiet, patience, what.idle),
        "delivery": _check_delivery(what, probe, greeting),
    }
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_answered(name, one)) for name, one in checks.items()]
    # Each once: several may come upon the same.
    return list(dict.fromkeys(finding for task in running for finding in task.result()))


async def _answered(check: str, one: Coroutine[None, None, list[Finding]]) -> list[Finding]:
    """Return what a check found; something that does not answer it is a fault, and not the end."""
    try:
        return await one
    except NotReached as error:
        return [fault(check, f"no answer: {error}", "look into the log of what stands there; the "
                      "gateway answered at least once")]  # fmt: skip


async def _check_delivery(what: Examination, probe: Probe, greeting: Greeting) -> list[Finding]:
    if not what.publish_url:
        return []
    channel = what.own_channel()
    async with publishing(
        what.publish_url, channel, greeting.reducer,
        timeout_seconds=what.timeout, insecure=what.insecure,
    ) as publisher:  # fmt: skip
        limits = Limits(what.patience, what.idle)
        return await check_delivery(probe, greeting, publisher, channel, limits)


async def _check_http_2(probe: Probe) -> Finding:
    six = "browsers open six connections to a host, for all tabs, and each stream takes one"
    if probe.url.startswith("http://"):
        return warning("http2", f"without TLS browsers speak HTTP/1.1: {six}",
                       "NGINX: listen 443 ssl http2;",
                       "Varnish: hitch or NGINX in front of it, and https://")  # fmt: skip
    if await probe.offers_http_2():
        return ok("http2", "HTTP/2 is offered")
    return warning("http2", f"HTTP/2 is not offered: {six}", "NGINX: listen 443 ssl http2;",
                   'hitch before Varnish: alpn-protos = "h2, http/1.1"')  # fmt: skip


def worst(found: list[Finding]) -> Level:
    """Return the worst level of them."""
    levels = {one.level for one in found}
    return next(level for level in (Level.FAULT, Level.WARNING, Level.OK) if level in levels)
