"""CDNs and webhooks are sent what their documents ask for; their refusals are failures."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator

import orjson
import pytest

from gateway.protocol.position import Position
from gateway.purge.request import Requests
from gateway.purge.services import CloudflareTarget, FastlyTarget, WebhookTarget
from gateway.purge.target import Purge, PurgeFailed
from tests.purge.recorder import Recorder, recorder

LONG = hashlib.blake2b(b"x" * 200, digest_size=16).hexdigest()
PURGES = [
    Purge("a/b", Position(7, 1)),
    Purge("x" * 200, Position(8, 0)),
    Purge("gone", Position(9, 0), ended=True),
]
# After an event the snapshot alone is old, at the end of a channel all that was kept of it.
KEYS = ["st.a/b", f"st#{LONG}", "ch.gone"]


@pytest.fixture
async def requests() -> AsyncIterator[Requests]:
    made = Requests(5.0)
    yield made
    await made.aclose()


@pytest.fixture
async def server() -> AsyncIterator[Recorder]:
    async with recorder() as running:
        yield running


async def test_fastly_is_purged_softly_by_keys(requests: Requests, server: Recorder) -> None:
    server.answer = lambda one: (200, {}, b'{"status":"ok"}')
    await FastlyTarget(requests, server.url, "SERVICE", "TOKEN").purge("default", PURGES)
    [one] = server.received
    assert (one.method, one.path) == ("POST", "/service/SERVICE/purge")
    assert one.headers["Fastly-Key"] == "TOKEN"
    assert one.headers["Fastly-Soft-Purge"] == "1"
    assert one.headers["Content-Type"] == "application/json"
    assert orjson.loads(one.body) == {"surrogate_keys": KEYS}
    assert FastlyTarget.batch_limit == 256


async def test_fastly_takes_a_whole_batch_of_long_names(
    requests: Requests, server: Recorder
) -> None:
    names = [f"{number:0>120}" for number in range(FastlyTarget.batch_limit)]
    purges = [Purge(name, Position(7, 1)) for name in names]
    await FastlyTarget(requests, server.url, "SERVICE", "TOKEN").purge("default", purges)
    [one] = server.received
    assert orjson.loads(one.body) == {"surrogate_keys": [f"st.{name}" for name in names]}


async def test_cloudflare_is_purged_by_tags(requests: Requests, server: Recorder) -> None:
    server.answer = lambda one: (200, {}, b'{"success":true,"errors":[]}')
    target = CloudflareTarget(requests, f"{server.url}/client/v4", "ZONE", "TOKEN")
    await target.purge("default", PURGES)
    [one] = server.received
    assert (one.method, one.path) == ("POST", "/client/v4/zones/ZONE/purge_cache")
    assert one.headers["Authorization"] == "Bearer TOKEN"
    assert one.headers["Content-Type"] == "application/json"
    assert orjson.loads(one.body) == {"tags": KEYS}
    assert CloudflareTarget.batch_limit == 30


async def test_a_webhook_is_signed(requests: Requests, server: Recorder) -> None:
    await WebhookTarget(requests, f"{server.url}/hook", "secret", lambda: 1700000000.5).purge(
        "default", PURGES
    )
    [one] = server.received
    assert (one.method, one.path) == ("POST", "/hook")
    assert orjson.loads(one.body) == {
        "namespace": "default",
        "channels": [
            {"channel": "a/b", "id": "7-1", "key": KEYS[0]},
            {"channel": "x" * 200, "id": "8-0", "key": KEYS[1]},
            {"channel": "gone", "id": "9-0", "key": KEYS[2]},
        ],
    }
    assert one.headers["webhook-timestamp"] == "1700000000"
    signed = f"{one.headers['webhook-id']}.1700000000.".encode() + one.body
    digest = hmac.new(b"secret", signed, hashlib.sha256).digest()
    assert one.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait"),
    [
        (429, {"Retry-After": "7"}, b"slow down", 7.0),
        (401, {}, b'{"success":false}', 0.0),
        (500, {"Retry-After": "soon"}, b"", 0.0),
        (302, {"Location": "/elsewhere"}, b"", 0.0),
    ],
)
async def test_a_refusal_is_a_failure_that_says_why(
    requests: Requests,
    server: Recorder,
    status: int,
    headers: dict[str, str],
    body: bytes,
    wait: float,
) -> None:
    server.answer = lambda one: (status, headers, body)
    for target in (
        FastlyTarget(requests, server.url, "S", "TOKEN"),
        CloudflareTarget(requests, server.url, "Z", "TOKEN"),
        WebhookTarget(requests, server.url, "secret"),
    ):
        with pytest.raises(PurgeFailed, match=str(status)) as caught:
            await target.purge("default", PURGES)
        assert caught.value.retry_after_seconds == wait
        assert "TOKEN" not in str(caught.value)


async def test_a_cloudflare_answer_that_says_no_is_a_failure(
    requests: Requests, server: Recorder
) -> None:
    for body in (b'{"success":false,"errors":[{"code":1012}]}', b"[]", b"nonsense"):
        server.answer = lambda one, body=body: (200, {}, body)  # type: ignore[misc]
        with pytest.raises(PurgeFailed):
            await CloudflareTarget(requests, server.url, "Z", "T").purge("default", PURGES)


async def test_a_failure_tells_no_password_whatever_went_wrong(requests: Requests) -> None:
    for url, token in (("http://admin:s3cret@127.0.0.1:1", "T"), ("http://127.0.0.1:1", "T\n")):
        with pytest.raises(PurgeFailed) as caught:
            await FastlyTarget(requests, url, "S", token).purge("default", PURGES)
        assert "s3cret" not in str(caught.value)
        assert "127.0.0.1:1/service/S/purge" in str(caught.value)


async def test_a_target_that_is_not_there_is_a_failure(requests: Requests) -> None:
    with pytest.raises(PurgeFailed):
        await FastlyTarget(requests, "http://127.0.0.1:1", "S", "T").purge("default", PURGES)
