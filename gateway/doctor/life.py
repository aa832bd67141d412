"""How long snapshots may be kept, by what their headers say; and whether a ring is too short."""

import asyncio
import re
from dataclasses import dataclass

from gateway.doctor.finding import Finding, ok, warning
from gateway.doctor.probe import Answer, Probe
from gateway.protocol.cache_control import NO_STORE, life_limit_seconds
from gateway.protocol.errors import InvalidField
from gateway.protocol.position import Position

_MOVES_SECONDS = 3.0
"""Within this time the oldest event leaves a ring that is too small for its channel."""

_NEAR_SECONDS = 3
"""Between the makings of what is compared: a snapshot is cached, a page, too."""

_LARGER = (
    "the gateway: ring_limit_bytes (and ring_limit_events) above what the channel sends in "
    "edge_max_age_seconds + stale_if_error_seconds + 10 s",
    "or smaller events, or fewer",
)


@dataclass(frozen=True, slots=True)
class Life:
    """What a snapshot's `Cache-Control` allows, in seconds; all 0 for `no-store`."""

    browser: int
    edge: int
    while_revalidate: int
    if_error: int

    @property
    def edge_limit_seconds(self) -> int:
        """The greatest age that a shared cache may serve."""
        return self.edge + max(self.while_revalidate, self.if_error)


def read_life(answer: Answer) -> Life | None:
    """Return what the gateway said; None when something on the way said something else."""
    control = answer.headers.get("Cache-Control", "")
    # What the gateway forbids to keep, it forbids everybody.
    if control == NO_STORE and answer.headers.get("CDN-Cache-Control", NO_STORE) == NO_STORE:
        return Life(0, 0, 0, 0)
    found = {name: int(n) for name, n in re.findall(r"([a-z-]+)=(\d+)", control)}
    if "s-maxage" not in found:
        return None
    return Life(
        found.get("max-age", 0),
        found["s-maxage"],
        found.get("stale-while-revalidate", 0),
        found.get("stale-if-error", 0),
    )


def may_be_kept(answer: Answer) -> bool:
    """Tell whether a shared cache is allowed to keep it."""
    life = read_life(answer)
    return life is None or life.edge > 0


async def check_life(probe: Probe, channel: str, limit_seconds: float) -> list[Finding]:
    """Say how long a channel's snapshot may be kept, and whether its ring allows no more.

    The ring is watched for some seconds, no longer than the limit.
    """
    before = await oldest(probe, channel)
    await asyncio.sleep(min(_MOVES_SECONDS, limit_seconds) if before is not None else 0)
    after = await oldest(probe, channel)
    answer = await probe.get(f"/snapshots/{channel}", accept_encoding="identity")
    return judge_life(channel, answer, before, after)


def judge_life(
    channel: str, answer: Answer, before: Position | None, after: Position | None
) -> list[Finding]:
    """Judge what a snapshot says; `before` and `after` are the ring's oldest events by and by."""
    life = read_life(answer) if answer.status == 200 else None
    if life is None:
        return []  # Said elsewhere.
    sent = f"Cache-Control: {answer.headers['Cache-Control']}"
    if "CDN-Cache-Control" in answer.headers:
        sent += f"; CDN-Cache-Control: {answer.headers['CDN-Cache-Control']}"
    if answer.headers["Cache-Control"] == NO_STORE:
        return [warning("life", f"no cache may keep snapshots of {channel}: it is too busy for its "
                        f"ring ({sent})", *_LARGER)]  # fmt: skip
    if _is_cut_short(life, answer, before, after):
        return [warning("life", f"{channel} is busy, and its ring short: caches may keep snapshots "
                        f"for as long as it reaches back, and no longer ({sent})",
                        *_LARGER)]  # fmt: skip
    if life.edge == 0:
        return [warning("life", f"the edge may keep no snapshots: each is asked of the gateway "
                        f"({sent})", "the setting edge_max_age_seconds above 0")]  # fmt: skip
    return [ok("life", f"the edge keeps a snapshot for {life.edge} s, browsers for {life.browser} "
               f"s; stale for {life.while_revalidate} s, or {life.if_error} s while the gateway "
               f"does not answer ({sent})")]  # fmt: skip


def _is_cut_short(
    life: Life, answer: Answer, before: Position | None, after: Position | None
) -> bool:
    """Tell whether the life is what the ring's span allows, of a ring that loses events."""
    if before is None or after is None or after <= before:
        return False
    limit = life_limit_seconds((answer.date or answer.at) - after.ms / 1000)
    return limit is not None and life.edge_limit_seconds + life.browser >= limit - _NEAR_SECONDS


async def oldest(probe: Probe, channel: str) -> Position | None:
    """Return the position of the oldest event that the channel's ring holds."""
    page = await probe.get(f"/history/{channel}?limit=1", accept_encoding="identity")
    try:
        return Position.parse(page.document["events"][0]["id"])
    except (KeyError, IndexError, TypeError, InvalidField):
        return None
