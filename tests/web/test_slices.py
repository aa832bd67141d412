"""`GET /slices/…`: what is refused, and what cuts a slice off."""

import asyncio

import pytest

from gateway.protocol.position import Position
from tests.running import ENDLESS, ENDLESS_SECONDS, Valkey
from tests.web.client import EVENT_SOURCE, Client, open_raw
from tests.web.conftest import Start
from tests.web.slicing import Reader, epoch_of, ids, max_age, number_now

LASTING = {"namespaces": {"default": ENDLESS}}


async def running_slice(client: Client) -> str:
    """Return the path of the slice that outlasts the test."""
    return f"/slices/{await epoch_of(client)}/{await number_now(client, ENDLESS_SECONDS)}/a"


@pytest.mark.parametrize(
    ("number", "status"),
    [("-1", 400), ("x", 400), ("01", 400), ("9" * 16, 400), ("9" * 3000, 400), ("9" * 11, 404)],
)
async def test_a_number_that_is_none_or_lies_ahead_is_refused(
    client: Client, number: str, status: int
) -> None:
    answer = await client.get(f"/slices/{await epoch_of(client)}/{number}/a")
    assert answer.status == status
    assert answer.problem
    assert answer.headers["Cache-Control"] == "no-store"


async def test_unknown_parameters_epochs_and_old_slices_are_refused(client: Client) -> None:
    epoch = await epoch_of(client)
    for path, status in (
        (f"/slices/{epoch}/1/a?x=1", 400),
        ("/slices/current/a?x=1", 400),
        (f"/slices/{epoch}/1/a//b", 400),
        (f"/slices/{epoch}/1/a%2Fb", 400),
        ("/slices/current/%61", 400),
        (f"/slices/{'e' * 500}/1/a", 410),
        (f"/slices/{epoch}/1/a", 410),
    ):
        answer = await client.get(path)
        assert answer.status == status, path
        assert answer.problem
        assert answer.headers["Cache-Control"] == "no-store"
    assert (await client.ask("POST", "/slices/current/a")).status == 405


async def test_a_flood_of_old_numbers_costs_the_store_nothing(start: Start, redis: Valkey) -> None:
    # A worker that has sealed nothing yet.
    client = await start()
    epoch, number = await epoch_of(client), await number_now(client, 30)
    before = await redis.commands()
    old = [client.get(f"/slices/{epoch}/{number - 200 - n}/a") for n in range(400)]
    answers = await asyncio.gather(*old)
    assert {(one.status, one.problem["reason"]) for one in answers} == {(410, "evicted")}
    reader = Reader(client, f"/slices/{epoch}/{number}/a")
    await reader.has(bool)
    assert reader.status == 200
    assert await redis.commands() - before < 100
    client.gateway.slices.drain()


async def test_a_crowd_that_is_early_asks_the_store_together(start: Start, redis: Valkey) -> None:
    client = await start()
    path = f"/slices/{await epoch_of(client)}/{await number_now(client, 30) + 2}/a"
    before = await redis.commands()
    answers = await asyncio.gather(*[client.get(path) for _ in range(400)])
    assert {one.status for one in answers} == {404}
    assert await redis.commands() - before < 200


async def test_the_current_slice_is_chosen_by_the_clock_that_runs_ahead(
    start: Start, redis: Valkey
) -> None:
    client = await start()
    epoch, number = await epoch_of(client), await number_now(client, 30)
    # As after a server whose time was a minute ahead.
    ahead = f"{(number + 2) * 30_000 + 1000}-0"
    async with redis.client() as valkey:
        await valkey.hset("sg:{default}:meta", "clock", ahead)
    published = await client.publish("a", b"1")
    assert Position.parse(published) > Position.parse(ahead)
    for path in ("/slices/current/a", f"/slices/{epoch}/{number + 2}/a"):
        reader = Reader(client, path, EVENT_SOURCE)
        await reader.has(lambda body: published.encode() in body)
        assert b"event: gap" not in reader.body
    client.gateway.slices.drain()


async def test_a_worker_whose_clock_is_behind_the_stores_tells_slices_no_longer_life(
    start: Start, redis: Valkey
) -> None:
    roomy = {"slice_seconds": 30, "ring_age_seconds": 3600, "ring_limit_events": 100_000}
    client = await start({"namespaces": {"default": roomy}})
    epoch, number = await epoch_of(client), await number_now(client, 30)
    # To this worker, a store that gives out later positions is one whose clock is ahead.
    async with redis.client() as valkey:
        await valkey.hset("sg:{default}:meta", "clock", f"{(number + 60) * 30_000}-0")
    await client.publish("a", b"1")
    whole = await client.get(f"/slices/{epoch}/{number + 1}/a")
    assert ids(whole.body) == []
    assert 1000 < max_age(whole.headers) <= 3600 - 59 * 30 - 10


async def test_a_head_tells_the_headers_and_opens_nothing(client: Client) -> None:
    epoch = await epoch_of(client)
    number = (await client.gateway.store.greet("default")).clock.ms // 30_000
    answer = await client.ask("HEAD", f"/slices/{epoch}/{number}/a")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert client.gateway.slices.readers == 0


async def test_a_drain_cuts_slices_off_without_a_word(start: Start) -> None:
    client = await start(LASTING)
    reader = Reader(client, await running_slice(client))
    await reader.has(lambda body: body == b"retry: 500\n\n")
    client.gateway.drain()
    assert await reader.end() == b"retry: 500\n\n"
    assert reader.cut
    refused = await client.get("/slices/current/a")
    assert refused.status == 503
    kept = await client.get("/slices/current/a", EVENT_SOURCE)
    assert kept.status == 200
    assert b"event: unavailable" in kept.body
    assert kept.headers["Cache-Control"] == "no-store, no-transform"


async def test_a_flushed_store_is_another_epoch(start: Start, redis: Valkey) -> None:
    client = await start(LASTING)
    path = await running_slice(client)
    reader = Reader(client, path)
    await reader.has(lambda body: body == b"retry: 500\n\n")
    async with redis.client() as valkey:
        await valkey.flushall()
    await reader.end()
    assert reader.cut
    answer = await client.get(path)
    assert (answer.status, answer.problem["reason"]) == (410, "epoch")


async def test_whoever_names_no_epoch_is_told_that_it_began_within_the_slice(start: Start) -> None:
    client = await start(LASTING)
    published = await client.publish("a", b"1")
    await client.settle()
    told = await client.get("/slices/current/a", EVENT_SOURCE)
    assert b"event: gap" in told.body
    assert published.encode() in told.body  # From where it may go on.
    reader = Reader(client, await running_slice(client))
    await reader.has(lambda body: published.encode() in body)
    client.gateway.slices.drain()
    await reader.end()


async def test_http_1_0_gets_the_slice_but_no_cache_may_keep_it(client: Client) -> None:
    await client.publish("a", b"1")
    epoch = await epoch_of(client)
    number = (await client.gateway.store.greet("default")).clock.ms // 30_000
    async with open_raw(client.worker, f"/slices/{epoch}/{number}/a") as raw:
        assert b"data: 1" in await raw.read_until(b"data: 1\n\n")
        assert b"Cache-Control: no-store\r\n" in raw.head
