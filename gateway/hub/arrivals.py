"""Who waits for a channel's next event without a stream; keeps no events and no positions."""

import asyncio
from collections.abc import Sequence

from gateway.hub.mirror import Mirror
from gateway.protocol.ring import Entry


class _Arrival:
    """What all who wait for one channel wait for."""

    __slots__ = ("future", "waiters")

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters = 0


class Arrivals:
    """A listener of the tails: one future a channel, however many wait.

    An event wakes those who wait for its channel and nobody else; so does the channel's deletion,
    and a mirror that begins anew.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.draining = False
        # By channel, as long as somebody waits for it: bounded by those who do.
        self._arrivals: dict[str, _Arrival] = {}

    def take(self, mirror: Mirror, entries: Sequence[Entry]) -> None:
        """Wake who waits for the channels of these entries."""
        if self._arrivals:
            for channel in {entry.event.channel for entry in entries}:
                self._wake(channel)

    def restart(self, mirror: Mirror, before: object) -> None:
        """Wake everybody: the history may be another one. It is rare, so all namespaces do."""
        self._wake_all()

    def room(self, mirror: Mirror) -> asyncio.Future[None] | None:
        """Waking is done at once: the tail never waits for it."""
        return None

    def drain(self) -> None:
        """Let nobody wait any longer, now or later."""
        self.draining = True
        self._wake_all()

    async def wait(self, channel: str, seconds: float) -> None:
        """Return when something has come for the channel, or the time is over."""
        arrival = self._arrivals.get(channel)
        if arrival is None:
            arrival = self._arrivals[channel] = _Arrival()
        arrival.waiters += 1
        self.waiting += 1
        try:
            # Neither the time nor a reader that leaves may cancel what the others wait for.
            await asyncio.wait([arrival.future], timeout=seconds)
        finally:
            arrival.waiters -= 1
            self.waiting -= 1
            if not arrival.waiters and self._arrivals.get(channel) is arrival:
                del self._arrivals[channel]

    def _wake(self, channel: str) -> None:
        arrival = self._arrivals.pop(channel, None)
        if arrival is not None:
            arrival.future.set_result(None)

    def _wake_all(self) -> None:
        for channel in list(self._arrivals):
            self._wake(channel)
