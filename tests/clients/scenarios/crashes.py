"""`/client.js` while the gateway's process is killed and started again."""

from tests.clients.pages import TRANSPORTS, order, reached, read, report
from tests.clients.serving import Writer, live_through_crashes, serving
from tests.clients.together import Scenario, Stage
from tests.running import until


async def every_event_comes_once_though_the_gateway_is_killed(stage: Stage) -> None:
    async with serving(stage.directory) as served:
        page = await stage.page(served.url)
        async with Writer(stage.session, served.url, "live/a") as writer:
            await until(lambda: writer.stored)
            begins = {}
            for transport in TRANSPORTS:
                await read(page, served.url, "live/a", transport, transports=[transport])
                begins[transport] = (await reached(page, transport, writer.stored[0][0]))["begin"]

            async def count() -> int:
                """Return how many events the slowest reader has, those before its time too."""
                ends = [(await report(page, transport))["position"] for transport in TRANSPORTS]
                least = min(map(order, ends))
                return sum(order(id) <= least for id, _ in writer.stored)

            await live_through_crashes(served, writer, count)
        for transport in TRANSPORTS:
            found = await report(page, transport)
            wanted = [one for one in writer.stored if order(one[0]) > order(begins[transport])]
            assert list(zip(found["ids"], found["data"], strict=True)) == wanted
            assert (found["gaps"], found["transports"]) == ([], [transport])
            assert len(wanted) > 30


SCENARIOS: list[Scenario] = [every_event_comes_once_though_the_gateway_is_killed]
