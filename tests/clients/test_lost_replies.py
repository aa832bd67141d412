"""A publish whose reply is lost on the way is stored once, however the publisher goes on."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.clients.proxy import Proxy, proxy
from tests.running import Worker, free_port, valkey, worker

NAMESPACES = {"namespaces": {"prices": {"reducer": "keyed"}, "docs": {"reducer": "merge"}}}
CHANNELS = {"news/a": {}, "prices/a": {"key": "k"}, "docs/a": {}}
each_reducer = pytest.mark.parametrize("channel", CHANNELS, ids=["last", "keyed", "merge"])


@dataclass
class Rig:
    """A client, a gateway and a Redis, with a proxy between each two."""

    session: aiohttp.ClientSession
    gateway: Worker
    to_redis: Proxy
    to_gateway: Proxy

    @property
    def url(self) -> str:
        """The gateway's address behind the proxy."""
        return f"http://127.0.0.1:{self.to_gateway.port}"

    async def publish(
        self, channel: str, data: object, token: str = ""
    ) -> tuple[int, dict[str, Any], bool]:
        """Return status, body, and whether the answer says that it is an earlier one's."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Idempotency-Key"] = token
        async with self.session.post(
            f"{self.url}/publish/{channel}",
            params=CHANNELS[channel], data=json.dumps(data), headers=headers,
        ) as response:  # fmt: skip
            body = await response.json(content_type=None)
            return response.status, body, "Idempotency-Replayed" in response.headers

    async def publish_batch(self, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Return status and body."""
        async with self.session.post(
            f"{self.url}/publish",
            data="\n".join(map(json.dumps, lines)),
            headers={"Content-Type": "application/x-ndjson"},
        ) as response:
            return response.status, await response.json(content_type=None)

    async def events(self, channel: str) -> list[tuple[str, Any]]:
        """Return position and data of all that the channel holds."""
        async with self.session.get(f"{self.gateway.url}/history/{channel}") as response:
            return [(event["id"], event["data"]) for event in (await response.json())["events"]]

    async def snapshot(self, channel: str, at_least: str) -> Any:
        """Return the state."""
        url = f"{self.gateway.url}/snapshots/{channel}"
        async with self.session.get(url, params={"min": at_least}) as response:
            return (await response.json())["state"]


@pytest.fixture
async def rig(session: aiohttp.ClientSession, tmp_path: Path) -> AsyncIterator[Rig]:
    port = free_port()
    async with (
        valkey(tmp_path / "valkey", port=port),
        proxy(port) as to_redis,
        worker(f"redis://127.0.0.1:{to_redis.port}", NAMESPACES) as gateway,
        proxy(int(gateway.url.rpartition(":")[2])) as to_gateway,
    ):
        yield Rig(session, gateway, to_redis, to_gateway)


@each_reducer
async def test_the_gateway_does_not_publish_again_by_itself(rig: Rig, channel: str) -> None:
    _, first, _ = await rig.publish(channel, {"n": "first"})
    rig.to_redis.cut_after(b"the-marked-one")
    status, body, _ = await rig.publish(channel, {"n": "the-marked-one"})
    assert (status, body["outcome"], rig.to_redis.cuts) == (503, "unknown", 1)
    events = await rig.events(channel)
    assert [data for _, data in events] == [{"n": "first"}, {"n": "the-marked-one"}]
    assert events[0][0] == first["id"]


@each_reducer
async def test_a_publish_that_is_sent_again_after_redis_was_cut_off_is_stored_once(
    rig: Rig, channel: str
) -> None:
    await rig.publish(channel, {"n": "first"}, "token-1")
    rig.to_redis.cut_after(b"the-marked-one")
    status, _, _ = await rig.publish(channel, {"n": "the-marked-one"}, "token-2")
    assert (status, rig.to_redis.cuts) == (503, 1)
    status, answer, replayed = await rig.publish(channel, {"n": "the-marked-one"}, "token-2")
    assert (status, replayed) == (200, True)
    _, last, _ = await rig.publish(channel, {"m": 1})
    events = await rig.events(channel)
    assert [data for _, data in events] == [{"n": "first"}, {"n": "the-marked-one"}, {"m": 1}]
    assert [id for id, _ in events[1:]] == [answer["id"], last["id"]]
    state = {"last": {"m": 1}, "keyed": {"k": {"m": 1}}, "merge": {"n": "the-marked-one", "m": 1}}
    reducer = {"news/a": "last", "prices/a": "keyed", "docs/a": "merge"}[channel]
    assert await rig.snapshot(channel, last["id"]) == state[reducer]


@each_reducer
async def test_a_batch_that_is_sent_again_after_redis_was_cut_off_is_stored_once(
    rig: Rig, channel: str
) -> None:
    await rig.publish(channel, {"n": "first"})
    names = ["one", "the-marked-one", "three"]
    lines = [
        {"channel": channel, "data": {"n": n}, "idempotency_key": f"line-{at}", **CHANNELS[channel]}
        for at, n in enumerate(names)
    ]
    rig.to_redis.cut_after(b"the-marked-one")
    status, body = await rig.publish_batch(lines)
    assert (status, body["outcome"]) == (503, "unknown")
    status, answer = await rig.publish_batch(lines)
    assert (status, answer["replayed"]) == (200, 3)
    events = await rig.events(channel)
    assert [data["n"] for _, data in events] == ["first", "one", "the-marked-one", "three"]
    assert [id for id, _ in events[1:]] == answer["ids"]


@each_reducer
@pytest.mark.parametrize("moment", ["before the answer", "after the answer"])
async def test_a_publish_that_is_sent_again_after_the_gateway_was_cut_off_is_stored_once(
    rig: Rig, channel: str, moment: str
) -> None:
    await rig.publish(channel, {"n": "first"}, "token-1")
    if moment == "before the answer":
        # The gateway sees its caller go while Redis is still at work.
        rig.to_redis.delay_seconds = 0.05
        rig.to_gateway.cut_at(b"the-marked-one")
    else:
        rig.to_gateway.cut_after(b"the-marked-one")
    with pytest.raises(aiohttp.ClientError):
        await rig.publish(channel, {"n": "the-marked-one"}, "token-2")
    assert rig.to_gateway.cuts == 1
    status, answer, replayed = await rig.publish(channel, {"n": "the-marked-one"}, "token-2")
    assert status == 200
    # Before the answer, the second may overtake the first on its way to Redis.
    assert replayed or moment == "before the answer"
    events = await rig.events(channel)
    assert [data for _, data in events] == [{"n": "first"}, {"n": "the-marked-one"}]
    assert events[1][0] == answer["id"]


async def test_publishers_of_a_merged_channel_do_not_suffer_from_one_that_is_cut_off(
    rig: Rig,
) -> None:
    rig.to_redis.delay_seconds = 0.02
    rig.to_gateway.cut_at(b"the-marked-one")
    names = ["the-marked-one", *(f"n{number}" for number in range(20))]
    outcomes = await asyncio.gather(
        *(rig.publish("docs/a", {name: 1}, f"token-{name}") for name in names),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], aiohttp.ClientError)
    assert [one[0] for one in outcomes[1:] if not isinstance(one, BaseException)] == [200] * 20
    status, _, _ = await rig.publish("docs/a", {"the-marked-one": 1}, "token-the-marked-one")
    assert status == 200
    events = await rig.events("docs/a")
    assert sorted(name for _, data in events for name in data) == sorted(names)
    assert await rig.snapshot("docs/a", events[-1][0]) == dict.fromkeys(names, 1)
