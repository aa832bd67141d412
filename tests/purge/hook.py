"""Gateways that purge by a webhook, and what it was sent."""

from typing import Any

import aiohttp
import orjson

from tests.purge.recorder import Answer, Received, Recorder
from tests.running import Worker


def settings(hook: Recorder, **purge: Any) -> dict[str, Any]:
    """Return a gateway's settings; `purge` are more of that table."""
    return {
        "namespaces": {"default": {"purge": "webhook", "edge_max_age_seconds": 600}},
        "purge": {"webhook_url": hook.url, "webhook_secret": "s", **purge},
    }


def refreshed(request: Received) -> Answer:
    """Answer as an edge does that fetched a snapshot anew."""
    tag = f'"e.{request.headers["Minimum-Position"]}.d.identity"'
    return 200, {"ETag": tag}, b"{}"


async def publish(session: aiohttp.ClientSession, origin: Worker, channel: str) -> str:
    """Publish an event and return its position."""
    async with session.post(f"{origin.url}/publish/{channel}", data=b"1") as answer:
        return str((await answer.json())["id"])


def purged(hook: Recorder) -> list[tuple[str, str]]:
    """Return the channels and positions that were sent, in order."""
    return [
        (one["channel"], one["id"])
        for request in hook.received
        for one in orjson.loads(request.body)["channels"]
    ]
