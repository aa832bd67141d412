"""Forgets, now and then, channels that ended long ago; the store decides which may go."""

import asyncio
import logging
import time
from collections.abc import Iterable

from gateway.hub.tail import Tail
from gateway.protocol.errors import GatewayError
from gateway.store.redis import RedisStore

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 600.0
_CHANNELS = 5000  # To one call of the store; each that drops some makes the workers begin anew.


async def forget_ended(store: RedisStore, tails: Iterable[Tail], age_seconds: float) -> None:
    """Drop what the indexes remember of channels that ended before `age_seconds`; never returns.

    A channel with events or state stays, however quiet it is. Whoever comes from before the
    newest that was dropped has a gap.
    """
    while True:
        await asyncio.sleep(_PAUSE_SECONDS)
        for tail in tails:
            await sweep(store, tail, time.time() - age_seconds)


async def sweep(store: RedisStore, tail: Tail, before_seconds: float) -> None:
    """Drop what one namespace remembers of channels that ended before a Unix time."""
    name, index = tail.mirror.namespace.name, tail.mirror.index
    old = [c for c, entry in index.items() if entry.last.ms < before_seconds * 1000]
    try:
        for at in range(0, len(old), _CHANNELS):
            await store.sweep(name, old[at : at + _CHANNELS])
    except GatewayError as error:
        _log.info("namespace %s: not swept: %s", name, error)
