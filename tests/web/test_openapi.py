"""`/openapi.json`: a valid document, and what it says is what the gateway does."""

import copy
import gzip
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from multidict import CIMultiDictProxy
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from yarl import URL

from gateway.app import build_gateway
from gateway.settings import Settings
from gateway.web.routes import build_application
from tests.running import Stream, Valkey, until
from tests.web.client import EVENT_SOURCE, NDJSON, Answer, Client, event, first_id, open_raw
from tests.web.conftest import Start

BODY = (files("gateway.web") / "static" / "openapi.json").read_bytes()
DOCUMENT: dict[str, Any] = orjson.loads(BODY)
METHODS = ("get", "post", "put", "patch", "delete")
OF_THE_SERVER = {"content-type", "content-length", "transfer-encoding", "date", "server"}
Operation = tuple[str, str]
"""Method and path as they stand in the document."""


def close(node: Any) -> Any:
    """Forbid, in place, what a schema does not name: the document leaves room for more."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        for child in node.values():
            close(child)
    elif isinstance(node, list):
        for child in node:
            close(child)
    return node


CLOSED: dict[str, Any] = close(copy.deepcopy(DOCUMENT))


def look_up(node: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference to a parameter, header or response stands for."""
    if "$ref" in node:
        found: Any = CLOSED
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        assert isinstance(found, dict)
        return found
    return node


def errors_of(schema: dict[str, Any], value: object) -> list[str]:
    validator = OAS31Validator({**schema, "components": CLOSED["components"]})
    return [error.message for error in validator.iter_errors(value)]


def named(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


def operations() -> dict[Operation, dict[str, Any]]:
    return {
        (method.upper(), path): {
            **item[method],
            "parameters": [
                look_up(one)
                for one in item.get("parameters", []) + item[method].get("parameters", [])
            ],
        }
        for path, item in CLOSED["paths"].items()
        for method in METHODS
        if method in item
    }


def path_of(operation: Operation) -> str:
    """Return a path to try an operation with, from its example."""
    _, path = operation
    for parameter in operations()[operation]["parameters"]:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
    return path


def query_of(operation: Operation) -> set[str]:
    parameters = operations()[operation]["parameters"]
    return {one["name"] for one in parameters if one["in"] == "query"}


def response_of(operation: Operation, status: int) -> dict[str, Any]:
    responses = operations()[operation]["responses"]
    assert str(status) in responses, f"{operation} answered {status}"
    return look_up(responses[str(status)])


def check_head(response: dict[str, Any], headers: CIMultiDictProxy[str]) -> None:
    """Make sure that the head has what is promised, and nothing that is not."""
    described = {name: look_up(one) for name, one in response.get("headers", {}).items()}
    sent = {name.lower() for name in headers} - OF_THE_SERVER - {"connection"}
    assert sent <= {name.lower() for name in described}
    for name, one in described.items():
        if name in headers:
            assert errors_of(one["schema"], headers[name]) == [], name
        else:
            assert not one.get("required"), f"{name} is missing"


def check(operation: Operation, answer: Answer) -> None:
    """Make sure that an answer is one that the document describes."""
    response = response_of(operation, answer.status)
    check_head(response, answer.headers)
    if "content" not in response:
        assert answer.body == b""
        return
    kind = answer.headers["Content-Type"].partition(";")[0]
    schema = response["content"][kind]["schema"]
    body = answer.body
    if "Content-Encoding" in answer.headers:
        body = gzip.decompress(body)
    value = orjson.loads(body) if kind.endswith("json") else body.decode()
    assert errors_of(schema, value) == [], answer


# -- the document by itself -------------------------------------------------------------------


def test_the_document_is_valid_openapi() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert [str(error) for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_its_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert DOCUMENT["info"]["version"] == project["version"]
    assert DOCUMENT["info"]["title"] == project["name"]


def test_the_defaults_that_it_names_are_those_of_the_settings() -> None:
    found = re.findall(r"`([a-z_]+)\.([a-z_]+)` \(([0-9.]+)\)", BODY.decode())
    defaults = Settings()
    assert len(found) > 10
    for table, name, number in found:
        assert float(number) == getattr(getattr(defaults, table), name), f"{table}.{name}"
    limits = {one["name"]: one for one in operations()["GET", "/history/{channel}"]["parameters"]}
    assert limits["limit"]["schema"]["default"] == defaults.history.default_events


def examples(node: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each example with the schema that it is an example of."""
    if isinstance(node, dict):
        if "schema" in node:
            if "example" in node:
                yield node["schema"], node["example"]
            for one in node.get("examples", {}).values():
                yield node["schema"], one["value"]
        for child in node.values():
            yield from examples(child)
    elif isinstance(node, list):
        for child in node:
            yield from examples(child)


def test_every_example_matches_its_schema() -> None:
    found = list(examples(CLOSED))
    for name, schema in CLOSED["components"]["schemas"].items():
        found += [(named(name), example) for example in schema.get("examples", [])]
    batch = CLOSED["paths"]["/publish"]["post"]["requestBody"]["content"]["application/x-ndjson"]
    lines = batch["example"].splitlines()
    found += [(batch["x-line"], orjson.loads(line)) for line in lines]
    assert len(found) > 70
    for schema, example in found:
        assert errors_of(schema, example) == [], example


def test_every_problem_has_an_example_of_its_own_status() -> None:
    for operation, described in operations().items():
        for status, response in described["responses"].items():
            content = look_up(response).get("content", {}).get("application/problem+json")
            if content and status != "default":
                found = [example for _, example in examples(content)]
                assert {example["status"] for example in found} == {int(status)}, operation


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ("Channel", ["a", "a/b", "..a/.b", "a./~"], ["", "/a", "a/", "a//b", "a/..", "./a", "a b"]),
        ("Selector", ["a", "a/b/*", "...a/*"], ["*", "/*", "a/*/b", "../*", "a*"]),
        ("Position", ["0-0", "1795564745949-12"], ["1", "01-0", "1-", "a-b", "1-0-0"]),
    ],
)
def test_what_names_and_positions_may_be(schema: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if errors_of(named(schema), text)] == []
    assert [text for text in bad if not errors_of(named(schema), text)] == []


async def test_it_has_the_routes_of_the_gateway_and_no_others() -> None:
    gateway = build_gateway(Settings(), "unix:///nowhere")
    application = build_application(gateway.handlers, base_path="", requests=gateway.requests)
    routes = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None
    }
    await gateway.store.aclose()
    assert {route for route in routes if route[0] not in ("HEAD", "OPTIONS")} == set(operations())
    paths = {path for method, path in operations() if method == "GET"}
    assert {path for method, path in routes if method == "HEAD"} == paths
    # What pages of other sites may read answers their question whether they may.
    shared = {
        path
        for path in paths
        if "Access-Control-Allow-Origin"
        in look_up(operations()["GET", path]["responses"].get("200", {})).get("headers", {})
    }
    assert {path for method, path in routes if method == "OPTIONS"} == shared


# -- the document as it is served -------------------------------------------------------------


async def test_it_is_served_to_every_site_and_asked_for_again_by_tag(client: Client) -> None:
    answer = await client.get("/openapi.json")
    check(("GET", "/openapi.json"), answer)
    assert answer.body == BODY
    tag = answer.headers["ETag"]
    for held in (tag, f'"x", W/{tag}', "*"):
        again = await client.get("/openapi.json", {"If-None-Match": held})
        assert (again.status, again.headers["ETag"]) == (304, tag)
        check(("GET", "/openapi.json"), again)
    for other in ('"x"', "no tag", ""):
        assert (await client.get("/openapi.json", {"If-None-Match": other})).status == 200
    head = await client.ask("HEAD", "/openapi.json")
    assert (head.status, head.headers["ETag"], head.body) == (200, tag, b"")
    assert head.headers["Content-Length"] == str(len(BODY))


async def test_its_server_is_the_one_that_it_came_from_below_any_path(start: Start) -> None:
    client = await start({"base_path": "/some/where"})
    here = client.url("/openapi.json")
    assert here.path == "/some/where/openapi.json"
    (server,) = DOCUMENT["servers"]
    base = str(here.join(URL(server["url"]))).rstrip("/")
    assert base + "/livez" == str(client.url("/livez"))
    assert (await client.get("/openapi.json")).body == BODY


# -- what it says is what the gateway does ----------------------------------------------------


async def test_every_parameter_is_described_and_an_unknown_or_doubled_one_is_refused(
    client: Client,
) -> None:
    refusing = {one for one in operations() if "400" in operations()[one]["responses"]}
    for operation in sorted(set(operations()) - refusing):
        assert query_of(operation) == set()
        answer = await client.ask(operation[0], path_of(operation) + "?unknown=1")
        assert answer.status != 400
    assert len(refusing) >= 9
    for operation in sorted(refusing):
        method, path = operation[0], path_of(operation)
        answer = await client.ask(method, f"{path}?unknown=1")
        assert (answer.status, answer.problem["field"]) == (400, "unknown")
        known = answer.problem["rule"].removeprefix("is no parameter here; known: ")
        described = query_of(operation)
        assert set(known.split(", ")) == (described or {"none"}), operation
        check(operation, answer)
        for name in described - {"channel"}:
            answer = await client.ask(method, f"{path}?{name}=1&{name}=1")
            assert (answer.status, answer.problem["field"]) == (400, name), operation


async def test_a_line_of_a_batch_has_the_fields_that_are_described(client: Client) -> None:
    schema = CLOSED["components"]["schemas"]["BatchLine"]
    answer = await client.post("/publish", b'{"channel":"a","data":1,"more":1}', NDJSON)
    (error,) = answer.problem["errors"]
    known = error["rule"].removeprefix("is unknown; a line has ").split(", ")
    assert set(known) == set(schema["properties"])
    for name in schema["properties"]:
        # With a value of its own: an idempotency key stands for one event only.
        full = {"channel": "a", "data": 1, "type": "t", "key": "k", "idempotency_key": name}
        assert full.keys() == set(known)
        line = {key: value for key, value in full.items() if key != name}
        answer = await client.post("/publish", orjson.dumps(line), NDJSON)
        assert answer.status == (422 if name in schema["required"] else 200), name


@dataclass(frozen=True)
class Case:
    """A request and the status of its answer."""

    status: int
    method: str
    template: str
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


JSON = {"Content-Type": "application/json"}
ONE, MANY, END = "/publish/{channel}", "/publish", "/channels/{channel}"
STATE, PAGE, STREAM = "/snapshots/{channel}", "/history/{channel}", "/events/{channel}"
CURRENT, SLICE = "/slices/current/{channel}", "/slices/{epoch}/{number}/{channel}"
SETTINGS: dict[str, Any] = {
    "streams": {"send_buffer_bytes": 4096},
    "publish": {"event_limit_bytes": 1000},
    "snapshots": {"wait_seconds": 0.05},
    "namespaces": {
        "keyed": {"reducer": "keyed"},
        "none": {"reducer": "none"},
        "shut": {"visibility": "protected"},
        "small": {"stream_codings": ["gzip"]},
        "slow": {
            "reducer": "keyed",
            "conflate": True,
            "ring_limit_events": 3,
            "ring_spares_young": False,
        },
    },
}
CASES = [
    Case(200, "POST", ONE, "/publish/a/b?type=t", {**JSON, "Idempotency-Key": "1"}, b'{"n":1}'),
    Case(200, "POST", ONE, "/publish/a/b?type=t", {**JSON, "Idempotency-Key": "1"}, b'{"n":1}'),
    Case(409, "POST", ONE, "/publish/a/b", {"Idempotency-Key": "1"}, b"other"),
    # Clients that are made from the document escape a path's parameter as a whole.
    Case(200, "POST", ONE, "/publish/a%2Fb", {}, b"text"),
    Case(200, "POST", ONE, "/publish/keyed/a?key=k", {}, b"[1, 2]"),
    Case(400, "POST", ONE, "/publish/a%20b", {}, b"1"),
    Case(400, "POST", ONE, "/publish/a", {"Idempotency-Key": ""}, b"1"),
    Case(403, "POST", ONE, "/publish/shut/a", {}, b"1"),
    Case(403, "POST", ONE, "/publish/a", {"Sec-Fetch-Site": "cross-site"}, b"1"),
    Case(412, "POST", ONE, "/publish/a/b", {"If-Match": '"1-0"'}, b"1"),
    Case(412, "POST", ONE, "/publish/new", {"If-Match": "*"}, b"1"),
    Case(413, "POST", ONE, "/publish/a", {}, b"1" * 1001),
    Case(422, "POST", ONE, "/publish/a?type=gap", {}, b"1"),
    Case(422, "POST", ONE, "/publish/keyed/a", {}, b"1"),
    Case(422, "POST", ONE, f"/publish/a?key={'k' * 256}", {}, b"1"),
    Case(200, "POST", MANY, "", NDJSON, b'{"channel":"c","data":1,"idempotency_key":"2"}'),
    Case(200, "POST", MANY, "", NDJSON, b'{"channel":"c","data":1,"idempotency_key":"2"}'),
    Case(409, "POST", MANY, "", NDJSON, b'{"channel":"c","data":2,"idempotency_key":"2"}'),
    Case(400, "POST", MANY, "", {**NDJSON, "If-Match": "*"}, b""),
    Case(403, "POST", MANY, "", NDJSON, b'{"channel":"shut/a","data":1}'),
    Case(413, "POST", MANY, "", NDJSON, b'{"channel":"c","data":1}\n' * 10_001),
    Case(415, "POST", MANY, "", {"Content-Type": "text/csv"}, b"a,b"),
    Case(422, "POST", MANY, "", NDJSON, b'1\n{"channel":3}\n{"channel":"a","data":1,"?":1}'),
    Case(422, "POST", MANY, "", NDJSON, b'{"channel":"a","data":1,"key":[1]}'),
    Case(422, "POST", MANY, "", NDJSON, b""),
    Case(200, "GET", STATE, "/snapshots/a/b", {"Accept-Encoding": "gzip"}),
    Case(308, "GET", STATE, "/snapshots/a%2Fb"),
    Case(200, "GET", STATE, "/snapshots/keyed/a"),
    Case(304, "GET", STATE, "/snapshots/a/b", {"If-None-Match": "*"}),
    Case(400, "GET", STATE, "/snapshots/a/b?min=now"),
    Case(403, "GET", STATE, "/snapshots/shut/a"),
    Case(404, "GET", STATE, "/snapshots/nothing"),
    Case(404, "GET", STATE, "/snapshots/none/a"),
    Case(406, "GET", STATE, "/snapshots/a/b", {"Accept-Encoding": "*;q=0"}),
    Case(200, "GET", PAGE, "/history/a/b"),
    Case(200, "GET", PAGE, "/history/a/b?after=1-0&limit=1"),
    Case(200, "GET", PAGE, "/history/keyed/a"),
    Case(200, "GET", PAGE, "/history/a/b?after=1-0&wait=1", {"Accept-Encoding": "gzip"}),
    Case(304, "GET", PAGE, "/history/a/b", {"If-None-Match": "*"}),
    Case(308, "GET", PAGE, "/history/a%2Fb"),
    Case(406, "GET", PAGE, "/history/a/b", {"Accept-Encoding": "*;q=0"}),
    Case(400, "GET", PAGE, "/history/a/b?limit=0"),
    Case(403, "GET", PAGE, "/history/shut/a"),
    Case(404, "GET", PAGE, "/history/nothing"),
    Case(400, "GET", CURRENT, "/slices/current/a?x=1"),
    Case(403, "GET", CURRENT, "/slices/current/shut/a"),
    Case(400, "GET", SLICE, "/slices/x/-1/a"),
    Case(403, "GET", SLICE, "/slices/x/1/shut/a"),
    Case(410, "GET", SLICE, "/slices/x/1/a"),
    Case(400, "GET", STREAM, "/events/a?since=never"),
    Case(403, "GET", STREAM, "/events/shut/*"),
    Case(405, "POST", STREAM, "/events/a"),
    Case(400, "GET", "/events"),
    Case(403, "GET", "/events", "/events?channel=shut/a"),
    Case(405, "POST", "/events"),
    Case(200, "GET", "/channels", "/channels?limit=2"),
    Case(400, "GET", "/channels", "/channels?limit=1001"),
    Case(400, "DELETE", END, "/channels/a/b", {"If-Match": "1-0"}),
    Case(403, "DELETE", END, "/channels/shut/a"),
    Case(404, "DELETE", END, "/channels/nothing"),
    Case(412, "DELETE", END, "/channels/a/b", {"If-Match": '"1-0"'}),
    Case(200, "DELETE", END, "/channels/a/b"),
    Case(200, "GET", "/livez"),
    Case(200, "GET", "/readyz"),
    Case(200, "GET", "/metrics"),
    Case(200, "GET", "/console"),
    Case(200, "GET", "/console/{name}", "/console/console.css"),
    Case(200, "GET", "/console/{name}", "/console/console.js"),
    Case(404, "GET", "/console/{name}", "/console/none"),
    Case(302, "GET", "/"),
    Case(200, "GET", "/openapi.json"),
    Case(304, "GET", "/openapi.json", "", {"If-None-Match": "*"}),
    Case(400, "GET", "/openapi.json", "/openapi.json?format=yaml"),
    Case(200, "GET", "/client.js", "", {"Accept-Encoding": "gzip"}),
    Case(304, "GET", "/client.js", "", {"If-None-Match": "*"}),
    Case(400, "GET", "/client.js", "/client.js?v=2"),
]
# Positions beyond what was read, of channels that the worker knows.
WITHOUT_STORE = [
    Case(503, "POST", ONE, "/publish/a", {}, b"1"),
    Case(503, "POST", MANY, "", NDJSON, b'{"channel":"c","data":1}'),
    Case(503, "DELETE", END, "/channels/c"),
    Case(503, "GET", STATE, "/snapshots/c?min=9000000000000-0"),
    Case(503, "GET", PAGE, "/history/c?after=9000000000000-0"),
    Case(503, "GET", CURRENT, "/slices/current/c"),
    Case(503, "GET", STREAM, "/events/c?last_event_id=9000000000000-0"),
    Case(503, "GET", "/events", "/events?channel=c&last_event_id=9000000000000-0"),
    Case(503, "GET", "/channels"),
    Case(503, "GET", "/readyz"),
]


async def answers(client: Client, cases: list[Case]) -> set[tuple[str, str, str]]:
    """Try each case, make sure that its answer is described, and return which these were."""
    for case in cases:
        path = case.path or case.template
        answer = await client.ask(case.method, path, case.headers, case.body)
        assert answer.status == case.status, (case, answer)
        check((case.method, case.template), answer)
    return {(case.method, case.template, str(case.status)) for case in cases}


async def test_every_answer_that_is_described_is_given_as_described(
    start: Start, redis: Valkey
) -> None:
    client = await start(SETTINGS)
    seen = await answers(client, CASES)
    await redis.stop()
    tails = client.gateway.tails.values()
    await until(lambda: not any(tail.connected for tail in tails))
    seen |= await answers(client, WITHOUT_STORE)
    described = {
        (*operation, status)
        for operation, one in operations().items()
        for status in one["responses"]
        if status != "default"
    }
    # Streams have their own tests.
    assert described - seen == {
        ("GET", STREAM, "200"),
        ("GET", "/events", "200"),
        ("GET", CURRENT, "200"),
        *(("GET", SLICE, status) for status in ("200", "404", "503")),
    }


def check_stream(stream: Stream, template: str) -> None:
    operation = ("GET", template)
    response = response_of(operation, stream.response.status)
    check_head(response, stream.response.headers)
    assert stream.response.headers["Content-Type"] in response["content"]


async def test_slices_are_as_described(start: Start, redis: Valkey) -> None:
    client = await start({"namespaces": {"default": {"slice_seconds": 5}}})
    await client.publish("a", b"1")
    await client.settle()
    life = await client.gateway.store.greet("default")
    number = life.clock.ms // 5000
    current = await client.get("/slices/current/a")
    assert current.status == 200
    whole = await client.get(f"/slices/{life.epoch}/{number}/a")
    later = await client.get(f"/slices/{life.epoch}/{number + 1000}/a")
    # A running one has more to say to NGINX; its head is enough.
    head = await client.ask("HEAD", "/slices/current/a")
    assert [whole.status, later.status, head.status] == [200, 404, 200]
    assert whole.body.endswith(b'event: end\ndata: {"next":%d}\n\n' % (number + 1))
    check_head(response_of(("GET", SLICE), 200), whole.headers)
    check_head(response_of(("GET", CURRENT), 200), head.headers)
    check(("GET", SLICE), later)
    # One that nobody has sealed the beginning of, and nobody can.
    later = await client.get(f"/slices/{life.epoch}/{number + 1000}/a")
    ahead = later.problem["current_slice"] + 2
    await redis.stop()
    await until(lambda: not any(tail.connected for tail in client.gateway.tails.values()))
    lost = await client.get(f"/slices/{life.epoch}/{ahead}/b")
    assert lost.status == 503
    check(("GET", SLICE), lost)


async def test_the_head_of_a_coded_stream_is_as_described(start: Start) -> None:
    client = await start(SETTINGS)
    for accepted, coding in (("gzip", "gzip"), ("br", None)):
        url, headers = client.url("/events/small/a"), {"Accept-Encoding": accepted}
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            check_head(response_of(("GET", STREAM), answer.status), answer.headers)
            assert answer.headers.get("Content-Encoding") == coding
            assert answer.headers["Vary"] == "Accept-Encoding"


async def test_a_reset_is_as_described(start: Start) -> None:
    client = await start(SETTINGS)
    counters = client.gateway.hub.counters
    async with open_raw(client.worker, "/events/slow/a", receive_buffer_bytes=2048) as slow:
        await slow.read_until(b"\n\n")
        lines = [{"channel": "slow/a", "key": "k", "data": "x" * 900}] * 100
        idle = 0
        while idle < 5:  # Until every buffer on the way is full.
            written = counters.delivered_bytes
            await client.publish_lines(lines)
            await client.settle()
            idle = idle + 1 if counters.lags and counters.delivered_bytes == written else 0
        await client.publish("slow/a", b"end", "?key=k")
        slow.widen()
        await slow.read_until(b':"end"}')
        while not slow.body.endswith(b"\n\n"):
            await slow.read_more()
    blocks = [block for block in slow.body.decode().split("\n\n") if "event: reset" in block]
    assert len(blocks) == counters.conflations > 0
    assert counters.gaps == 0
    for block in blocks:
        id, _, data = block.split("\n")
        assert errors_of(named("Position"), id.removeprefix("id: ")) == []
        assert errors_of(named("Snapshot"), orjson.loads(data.removeprefix("data: "))) == []


async def test_the_events_of_a_stream_are_as_described(start: Start) -> None:
    client = await start(SETTINGS)
    await client.publish("a/b", b'{"n": 1}', "?key=k")
    async with client.follow("/events/a%2Fb?last_event_id=1-0") as stream:
        check_stream(stream, STREAM)
        assert await first_id(stream) == "1-0"
        _, kind, data = await event(stream)
        assert kind == "gap"
        assert errors_of(named("Gap"), orjson.loads(data)) == []
    async with client.follow("/events?channel=a/*&since=1h", "no position") as stream:
        check_stream(stream, "/events")
        await first_id(stream)
        _, kind, data = await event(stream)
        assert kind == "gap"
        assert errors_of(named("Gap"), orjson.loads(data)) == []
    async with client.follow("/events?channel=a/*&channel=c&since=1h") as stream:
        await first_id(stream)
        _, _, data = await event(stream)
        assert errors_of(named("Envelope"), orjson.loads(data)) == []
        assert orjson.loads(data).keys() == {"channel", "key", "data"}
    client.gateway.drain()
    answer = await client.get("/events/a/b", EVENT_SOURCE)
    check(("GET", STREAM), answer)
    data = answer.body.decode().partition("data: ")[2]
    assert errors_of(named("Unavailable"), orjson.loads(data)) == []
