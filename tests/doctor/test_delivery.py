"""The doctor publishes, and finds out by which way events come late; it leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from gateway.doctor.finding import Finding, Level
from gateway.doctor.probe import Probe
from gateway.doctor.streams import check_stream
from tests.doctor.breaking import HELD_STREAMS, replaced
from tests.doctor.looking import (
    PATIENT,
    SETTINGS,
    beyond_ok,
    faults,
    look,
)
from tests.edge.running import Edge, nginx, origin_of, varnish
from tests.running import Worker, free_port, valkey, worker
from tests.tcp import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_it_published_is_gone_afterwards(origin: Worker, tmp_path: Path) -> None:
    found = await look(origin.url, channel="prices/x", publish_url=origin.url, **PATIENT)
    assert [one.level for one in found if one.check == "delivery"] == [Level.OK] * 3
    async with aiohttp.ClientSession() as session, session.get(f"{origin.url}/channels") as answer:
        names = [one["channel"] for one in (await answer.json())["channels"]]
    assert not [name for name in names if "doctor" in name]
    assert "a/b" in names


async def held_ways(edge: Edge, origin: Worker) -> tuple[list[str], set[str]]:
    """Return by which ways events are found to be late, and all checks that find fault."""
    found = await look(edge.url, patience=2.0, publish_url=origin.url)
    late = [one for one in found if one.check == "delivery" and one.level is Level.FAULT]
    ways = [way for one in late for way in ("/events", "slice", "long-poll") if way in one.text]
    return ways, set(faults(found))


async def test_an_address_that_does_not_publish_is_a_fault(origin: Worker, tmp_path: Path) -> None:
    async with nginx(tmp_path, origin_of(origin.url)) as edge:
        urls = (edge.url, f"http://127.0.0.1:{free_port()}")
        looks = [look(edge.url, patience=10.0, publish_url=url) for url in urls]
        for found in await asyncio.gather(*looks):
            assert set(faults(found)) == {"delivery"}
            assert "cannot publish at" in faults(found)["delivery"].text


async def test_an_address_of_another_gateway_is_a_fault(origin: Worker, tmp_path: Path) -> None:
    async with valkey(tmp_path) as redis, worker(redis.url, SETTINGS) as other:
        found = faults(await look(origin.url, publish_url=other.url, **PATIENT))
        assert set(found) == {"delivery"}
        assert "another store" in found["delivery"].text


async def test_a_channel_that_cannot_be_deleted_is_warned_of(
    origin: Worker, tmp_path: Path
) -> None:
    edit = replaced("client_max_body_size 8m;", "client_max_body_size 8m; "
                    "location /channels/ { return 405; }")  # fmt: skip
    async with nginx(tmp_path, origin_of(origin.url), edit=edit) as edge:
        found = await look(edge.url, publish_url=edge.internal_url, **PATIENT)
        [left] = [one for one in found if one.check == "delivery" and one.level is Level.WARNING]
        channel = left.text.split()[2]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{origin.url}/snapshots/{channel}") as answer:
            assert answer.status == 200
        async with session.delete(f"{origin.url}/channels/{channel}") as answer:
            assert answer.status == 200


async def hold(address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass one answer on, but hold what comes first until some heartbeats have come, too."""
    host, _, port = address.rpartition(":")
    above, asking = await asyncio.open_connection(host, int(port))
    try:
        asking.write(await reader.readuntil(b"\r\n\r\n"))
        writer.write(await above.readuntil(b"\r\n\r\n"))
        writer.writelines([await above.readuntil(b": heartbeat\n\n") for _ in range(8)])
        while piece := await above.read(1000):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass  # The doctor has seen enough.
    finally:
        asking.close()


@asynccontextmanager
async def holding(origin: Worker) -> AsyncIterator[str]:
    """Run a proxy that holds the first block until something follows it."""
    async with serving(partial(hold, origin_of(origin.url))) as port:
        yield f"http://127.0.0.1:{port}"


async def held_first_block(url: str) -> list[Finding]:
    async with Probe(url, timeout_seconds=10) as probe:
        return await check_stream(probe, "a/quiet", patience=1.5, idle=3.5)


async def test_what_is_held_back_is_found_by_publishing_or_by_the_next_heartbeat(
    origin: Worker, tmp_path: Path
) -> None:
    whole = "sub vcl_backend_response {\n"
    edit = replaced(
        whole, f'{whole} if (bereq.url ~ "^/slices") {{ set beresp.do_stream = false; }}'
    )
    address = origin_of(origin.url)
    async with (
        nginx(tmp_path / "nginx", address, edit=HELD_STREAMS) as buffering,
        varnish(tmp_path / "varnish", address, edit=edit) as storing,
        holding(origin) as holder,
    ):
        # Side by side, for most of it is waiting.
        by_nginx, by_varnish, first = await asyncio.gather(
            held_ways(buffering, origin), held_ways(storing, origin), held_first_block(holder)
        )
    assert by_nginx == (["/events"], {"buffering", "delivery"})
    assert by_varnish == (["slice"], {"slices", "delivery"})
    assert beyond_ok(first) == ["buffering"]
    assert "together with the next thing" in first[3].text
