"""Bad requests through real edges: a clear problem, and never more than one request each behind."""

from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.edge.running import nginx, origin_of, publish, varnish
from tests.edge.test_nginx import ask
from tests.running import Valkey, worker

TIMES = 5


@pytest.mark.parametrize("kind", ["nginx", "varnish"])
async def test_bad_requests_are_answered_clearly_and_the_origin_is_not_hammered(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    start: Any = nginx if kind == "nginx" else varnish
    life = {"namespaces": {"default": {"edge_max_age_seconds": 60}}}
    async with worker(redis.url, life) as origin, start(tmp_path, origin_of(origin.url)) as edge:
        id = await publish(session, origin, "a", "1")
        epoch = (await origin.gateway.store.greet("default")).epoch
        cases: list[tuple[str, dict[str, str], set[int]]] = [
            ("/slices/another/1/a", {}, {410}),
            (f"/slices/{epoch}/-1/a", {}, {400}),
            (f"/slices/{epoch}/x/a", {}, {400}),
            (f"/slices/{epoch}/{'9' * 400}/a", {}, {400}),
            (f"/slices/{epoch}/99999999999/a", {}, {404}),
            (f"/slices/{epoch}/1/a", {}, {410}),
            ("/history/a?limit=0", {}, {400}),
            ("/history/a?limit=1&limit=2", {}, {400}),
            ("/history/a?nothing=1", {}, {400}),
            ("/history/a?wait=5", {}, {400}),
            (f"/history/a?after={id}&wait=0", {}, {400}),
            (f"/history/a?after={id}&wait=1&cursor=-1", {}, {400}),
            (f"/history/a?after={id}&wait=1&cursor=x", {}, {400}),
            ("/history/a?after=9007199254740991-0", {}, {200}),
            ("/snapshots/a?min=x", {}, {400}),
            ("/snapshots/a", {"If-None-Match": ", ".join(['"x.1-0.y.br"'] * 500)}, {200, 400}),
        ]
        for path, headers, statuses in cases:
            before = sum(origin.gateway.requests.values()) - origin.gateway.requests["/livez"]
            for _ in range(TIMES):
                answer = await ask(session, edge.url + path, headers)
                assert answer.status in statuses, (path, answer)
                if answer.status >= 400 and answer.headers["Content-Type"] != "text/html":
                    assert orjson.loads(answer.body)["detail"], path
            after = sum(origin.gateway.requests.values()) - origin.gateway.requests["/livez"]
            # Each is asked once at the most for each time that a reader asks: nothing is repeated.
            assert after - before <= TIMES, path


async def test_a_cursor_from_the_future_leads_to_another_one(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        id = await publish(session, origin, "a", "1")
        cursor = str(2**52)
        seen = {cursor}
        for _ in range(3):
            path = f"/history/a?after={id}&limit=10&wait=1&cursor={cursor}"
            answer = await ask(session, edge.url + path)
            if answer.status == 400:
                assert "cursor" in orjson.loads(answer.body)["detail"]
                return
            cursor = orjson.loads(answer.body)["cursor"]
            # Never the same address twice, or a cache would answer for ever.
            assert cursor not in seen
            seen.add(cursor)
