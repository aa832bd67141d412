"""A crowd of readers of slices behind Varnish; alone, for it takes all of the machine."""

import asyncio
from pathlib import Path

from gateway.protocol.position import Position
from tests.edge.following import Follower
from tests.edge.running import origin_of, publish, varnish
from tests.edge.slicing import SETTINGS, at_a_beginning, open_session
from tests.running import Valkey, worker

READERS = 300


async def test_readers_behind_varnish_share_three_requests_for_three_slices(
    redis: Valkey, tmp_path: Path
) -> None:
    async with (
        worker(redis.url, SETTINGS) as origin,
        varnish(tmp_path, origin_of(origin.url)) as e,
        open_session() as session,
    ):
        await at_a_beginning(origin)
        before = origin.gateway.requests["/slices/current"]
        followers = [Follower(session, f"{e.url}/slices/current/a") for _ in range(READERS)]
        following = [asyncio.create_task(one.run(3)) for one in followers]
        published: list[str] = []
        while not all(one.ends == 3 for one in followers):
            published.append(await publish(session, origin, "a", f"{len(published)}"))
            await asyncio.sleep(0.1)
            assert not any(task.done() and task.exception() for task in following)
        await asyncio.gather(*following)
        assert origin.gateway.requests["/slices/current"] - before == 3
    got = followers[0].ids
    assert all(one.ids == got for one in followers)
    assert not any(one.cuts for one in followers)
    # Everything, once, in order, up to where the last slice ended.
    end = Position.parse(followers[0].last_id)
    assert got == [id for id in published if Position.parse(id) < end]
