"""Slices at their boundaries when not all is well: a drain, a limit, a tail that is behind."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp
import pytest
import pytest_asyncio

from tests.running import Valkey, until, valkey, worker
from tests.web.client import EVENT_SOURCE, Client
from tests.web.proxy import redis_proxy
from tests.web.slicing import (
    HEARTBEAT,
    SLICED,
    Reader,
    at_a_slices_beginning_after_the_first,
    epoch_of,
    ids,
    just_before_the_end,
    number_now,
)
from tests.web.together import Begun, begin, together

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 5


class Shared(NamedTuple):
    """One store for all tests of the module; each has a gateway of its own."""

    redis: Valkey
    session: aiohttp.ClientSession


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Begun]:
    """The tests of the module, under way."""
    async with (
        valkey(tmp_path_factory.mktemp("pressed")) as redis,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type"),
        ) as session,
        begin(request, Shared(redis, session)) as tests,
    ):
        yield tests


@together
async def test_whoever_is_held_is_let_go_by_a_drain(shared: Shared) -> None:
    async with worker(shared.redis.url, SLICED) as running:
        client = Client(shared.session, running)
        epoch, number = await epoch_of(client), await just_before_the_end(client)
        wanted = client.gateway.slices._sealers["default"]._wanted
        assert not wanted
        plain = asyncio.create_task(client.get("/slices/current/drained", EVENT_SOURCE))
        numbered = asyncio.create_task(client.get(f"/slices/{epoch}/{number}/drained"))
        await until(lambda: wanted)
        client.gateway.drain()
        assert b'{"reason":"draining"}' in (await plain).body
        assert (await numbered).status == 503
        assert client.gateway.slices.readers == 0


@together
async def test_of_those_who_are_held_no_more_are_let_in_than_may_be(shared: Shared) -> None:
    limited = {
        "streams": {"subscribers_limit": LIMIT},
        "namespaces": dict.fromkeys(("default", "many"), SLICED["namespaces"]["default"]),
    }
    async with worker(shared.redis.url, limited) as running:
        client = Client(shared.session, running)
        await just_before_the_end(client)
        paths = [f"/slices/current/many/{number}" for number in range(4 * LIMIT)]
        readers = [Reader(client, path, EVENT_SOURCE) for path in paths]
        for reader in readers:
            await reader.has(bool)
        refused = [one for one in readers if b'{"reason":"overload"}' in one.body]
        assert len(refused) == len(readers) - LIMIT
        assert client.gateway.slices.readers == LIMIT
        # Nothing is left of the slices that those would have read.
        await until(lambda: client.gateway.slices._all_running())
        assert len(list(client.gateway.slices._all_running())) == LIMIT
        client.gateway.slices.drain()


@together
async def test_a_slice_stays_open_until_the_tail_has_passed_its_end(shared: Shared) -> None:
    async with (
        redis_proxy(shared.redis.socket) as proxy,
        worker(shared.redis.url, SLICED) as ahead,
        worker(proxy.url, SLICED) as behind,
    ):
        client, late = (Client(shared.session, one) for one in (ahead, behind))
        number = await at_a_slices_beginning_after_the_first(client)
        path = f"/slices/{await epoch_of(client)}/{number}/behind"
        readers = [Reader(one, path) for one in (client, late)]
        for reader in readers:
            await reader.has(bool)
        proxy.hold(b"XREAD")
        published = [await client.publish("behind", b"%d" % n) for n in range(5)]
        assert ids(await readers[0].end()) == published
        # The store has told the other one, too, that the boundary is sealed.
        await until(lambda: proxy.seen(b"EVALSHA"))
        assert await number_now(client) > number
        assert b"event: end" not in readers[1].body
        proxy.release()
        assert (await readers[1].end()).replace(HEARTBEAT, b"") == readers[0].body
