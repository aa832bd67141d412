"""What `/client.js` folds is what the gateway's snapshot says, in the corners of JSON, too."""

import aiohttp
import pytest
from playwright.async_api import Page

from tests.clients.pages import (
    ONE_LOOP,
    QUICK,
    TRANSPORTS,
    browser,
    connected,
    for_each,
    gateway,
    open_page,
    opener,
    page,
    publish,
    reached,
    read,
    redis,
    session,
    snapshot,
    state_in_page,
)
from tests.running import Worker

__all__ = ["browser", "gateway", "opener", "page", "redis", "session"]

pytestmark = ONE_LOOP

JSON = "application/json"
TEXT = "text/plain"
CHANGES = {
    "keyed": [
        ("text", b"kept", TEXT), ("gone", b"1", JSON), ("gone", b"", TEXT), ("never", b"", TEXT),
        ("null", b"null", JSON), ("back", b"", TEXT), ("back", b' " "', JSON),
        ("__proto__", b'{"__proto__":1}', JSON), ("constructor", b"[]", JSON),
        ("toString", b"", TEXT), ("7", b'{"":""}', JSON), ("back", b"", JSON), ("last", b"0", JSON),
    ],
    "merged": [
        ("", b'{"a":{"b":1},"__proto__":{"c":1}}', JSON), ("", b'{"a":{"b":null}}', JSON),
        ("", b'{"__proto__":{"c":null,"d":""}}', JSON),
        ("", b'{"constructor":null,"e":[null]}', JSON),
        ("", b'[1,{"a":null}]', JSON), ("", b'{"f":{"g":null,"h":{}}}', JSON), ("", b'""', JSON),
        ("", b'{"i":"","j":{"k":null}}', JSON),
    ],
    "plain": [("", b'{"a":1}', JSON), ("", b"", TEXT)],
}  # fmt: skip


async def publish_raw(
    session: aiohttp.ClientSession, url: str, channel: str, key: str, data: bytes, kind: str
) -> str:
    async with session.post(
        f"{url}/publish/{channel}",
        data=data,
        params={"key": key} if key else {},
        headers={"Content-Type": kind},
    ) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["id"])


@pytest.mark.parametrize("namespace", CHANGES)
async def test_the_state_of_a_page_is_the_gateways_after_every_event(
    gateway: Worker, session: aiohttp.ClientSession, page: Page, namespace: str
) -> None:
    async def compare(transport: str) -> None:
        channel = f"{namespace}/{transport}"
        await read(page, gateway.url, channel, transports=[transport])
        await connected(page, channel, transport)
        for key, data, kind in CHANGES[namespace]:
            last = await publish_raw(session, gateway.url, channel, key, data, kind)
            await reached(page, channel, last)
            expected = (await snapshot(session, gateway.url, channel))["state"]
            assert await state_in_page(page, channel) == expected, (key, data)

    await for_each(TRANSPORTS, compare)


async def test_no_value_of_a_key_looks_like_its_deletion(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel, url = "keyed/empty", f"{gateway.url}/publish/keyed/empty?key=a"
    for transport in TRANSPORTS:
        await read(page, gateway.url, channel, transport, transports=[transport])
    for transport in TRANSPORTS:
        await connected(page, transport, transport)
    for data in (b'""', b' ""\n'):
        async with session.post(url, data=data, headers={"Content-Type": JSON}) as response:
            assert 400 <= response.status < 500
    for value in ("kept", ""):
        last = await publish_raw(session, gateway.url, channel, "b", value.encode(), TEXT)
        expected = (await snapshot(session, gateway.url, channel, last))["state"]
        assert expected == ({"b": "kept"} if value else {})
        for transport in TRANSPORTS:
            await reached(page, transport, last)
            assert await state_in_page(page, transport) == expected


async def test_other_tabs_fold_what_the_leading_one_tells_them(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "keyed/tabs"
    other = await open_page(await page.context.new_page(), gateway.url)
    for tab in (page, other):
        await read(tab, gateway.url, channel, share=True)
        await connected(tab, channel, "events")
    for key, data, kind in CHANGES["keyed"]:
        last = await publish_raw(session, gateway.url, channel, key, data, kind)
    expected = (await snapshot(session, gateway.url, channel, last))["state"]
    for tab in (page, other):
        await reached(tab, channel, last)
        assert await state_in_page(tab, channel) == expected


async def test_whoever_folds_no_state_gives_none_to_one_that_does(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "merged/both"
    await publish(session, gateway.url, channel, {"a": 1})
    other = await open_page(await page.context.new_page(), gateway.url)
    await read(page, gateway.url, channel, share=True, persist=True, state=False)
    await connected(page, channel, "events")
    await read(other, gateway.url, channel, share=True, persist=True)
    await connected(other, channel, "events")
    last = await publish(session, gateway.url, channel, {"b": 2})
    for tab, state in ((page, None), (other, {"a": 1, "b": 2})):
        assert (await reached(tab, channel, last))["state"] == state
    # Nor does it to a visit that comes later.
    await other.close()
    await page.goto("about:blank")
    await page.goto(f"{gateway.url}/openapi.json")
    await read(page, gateway.url, channel, persist=True)
    last = await publish(session, gateway.url, channel, {"c": 3})
    assert (await reached(page, channel, last))["state"] == {"a": 1, "b": 2, "c": 3}


async def test_a_document_that_says_there_is_nothing_yet_is_taken_at_its_word(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    nothing = await snapshot(session, gateway.url, "plain/nothing")
    assert "state" not in nothing
    await read(page, gateway.url, "plain/nothing", transports=["poll"], snapshot=nothing)
    await connected(page, "plain/nothing", "poll")
    last = await publish(session, gateway.url, "plain/nothing", 1)
    found = await reached(page, "plain/nothing", last)
    assert (found["ids"], found["gaps"]) == ([last], [])


CLOSE_AT_THE_FIRST = """async ([module, base, channel, options]) => {
  const { follow } = await import(module);
  const followed = follow(base, channel, options);
  const ids = [];
  return new Promise((resolve) => {
    followed.addEventListener("event", ({ detail }) => {
      ids.push(detail.id);
      followed.close();
      // When all is done that came together.
      setTimeout(() => resolve([ids, followed.position, followed.state]));
    });
  });
}"""


async def test_nothing_is_taken_after_a_page_has_closed_in_the_middle_of_events(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    async def close_at_the_first(transport: str) -> None:
        channel = f"plain/{transport}"
        first = await publish(session, gateway.url, channel, 0)
        held = await snapshot(session, gateway.url, channel, first)
        ids = [await publish(session, gateway.url, channel, number) for number in range(1, 6)]
        told, position, state = await page.evaluate(
            CLOSE_AT_THE_FIRST,
            [f"{gateway.url}/client.js", gateway.url, channel,
             {**QUICK, "transports": [transport], "snapshot": held}],
        )  # fmt: skip
        # The position is that of the last event that was told: another reader may go on from it.
        assert (told, position, state) == ([ids[0]], ids[0], 1)

    await for_each(TRANSPORTS, close_at_the_first)
