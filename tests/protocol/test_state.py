"""States: what events add up to, folded one by one or loaded from the store."""

import json
from collections.abc import Mapping

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import InvalidField
from gateway.protocol.event import Event, NewEvent
from gateway.protocol.json_value import dump_json
from gateway.protocol.namespace import Reducer
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.state import (
    KeyedState,
    LastState,
    MergeState,
    NoState,
    State,
    check_foldable,
    load_state,
    merge_patch,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text("abc", max_size=2), children)
    ),
    max_leaves=10,
)


def event(data: bytes, *, json: bool = True, key: str = "") -> Event:
    return Event(Position(1, 0), ORIGIN, "a", data, json=json, key=key)


def rendered(state: State) -> bytes:
    return dump_json({"state": state.value()})


@pytest.mark.parametrize(
    ("reducer", "kind", "empty"),
    [
        (Reducer.LAST, LastState, b'{"state":null}'),
        (Reducer.MERGE, MergeState, b'{"state":{}}'),
        (Reducer.KEYED, KeyedState, b'{"state":{}}'),
        (Reducer.NONE, NoState, b'{"state":null}'),
    ],
)
def test_a_channel_without_events_has_an_empty_state(
    reducer: Reducer, kind: type[State], empty: bytes
) -> None:
    state = load_state(reducer, {})
    assert type(state) is kind
    assert rendered(state) == empty
    assert state.size_bytes > 0


def test_last_is_the_latest_event_byte_for_byte() -> None:
    state = load_state(Reducer.LAST, {b"v": b'j{ "a" : 1.0 }'})
    assert rendered(state) == b'{"state":{ "a" : 1.0 }}'
    state.fold(event(b"12345678901234567890123"))
    assert rendered(state) == b'{"state":12345678901234567890123}'
    state.fold(event(b'say "hi"\n', json=False))
    assert rendered(state) == b'{"state":"say \\"hi\\"\\n"}'
    state.fold(event(b"", json=False))
    assert rendered(state) == b'{"state":""}'


def test_last_counts_only_the_latest_event() -> None:
    state = LastState()
    small = state.size_bytes
    state.fold(event(b'"%b"' % (b"x" * 10_000)))
    assert state.size_bytes > 10_000
    state.fold(event(b"null"))
    assert state.size_bytes == small


def test_stored_text_is_told_from_stored_json() -> None:
    assert rendered(load_state(Reducer.LAST, {b"v": b"t1"})) == b'{"state":"1"}'
    assert rendered(load_state(Reducer.LAST, {b"v": b"j1"})) == b'{"state":1}'
    assert rendered(load_state(Reducer.LAST, {b"v": b"t"})) == b'{"state":""}'


# RFC 7396, appendix A, all of it.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('["a","b"]', '["c","d"]', '["c","d"]'),
        ('{"a":"b"}', '["c"]', '["c"]'),
        ('{"a":"foo"}', "null", "null"),
        ('{"a":"foo"}', '"bar"', '"bar"'),
        ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
        ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    ],
)
def test_merge_patches_work_as_in_the_standard(target: str, patch: str, result: str) -> None:
    given = json.loads(patch)
    assert merge_patch(json.loads(target), given) == json.loads(result)
    assert given == json.loads(patch)
    state = load_state(Reducer.MERGE, {b"v": b"j" + target.encode()})
    state.fold(event(patch.encode()))
    assert json.loads(rendered(state)) == {"state": json.loads(result)}


def test_a_merged_document_is_exact_and_in_one_order() -> None:
    state = MergeState()
    state.fold(event(b'{"b":12345678901234567890123,"a":{"y":1,"x":[]}}'))
    state.fold(event(b'{"c":18446744073709551616,"a":{"z":null}}'))
    other = MergeState(b'j{"c":18446744073709551616}')
    other.fold(event(b'{"a":{"x":[],"y":1},"b":12345678901234567890123}'))
    assert rendered(state) == rendered(other)
    assert rendered(state) == (
        b'{"state":{"a":{"x":[],"y":1},"b":12345678901234567890123,"c":18446744073709551616}}'
    )


def test_a_merged_document_is_counted_anew_when_it_is_rendered() -> None:
    state = MergeState(b'j{"a":1}')
    small = state.size_bytes
    for _ in range(100):
        state.fold(event(b'{"a":2}'))
    assert state.size_bytes > small
    state.value()
    assert len(b'{"a":2}') < state.size_bytes <= small


def test_two_states_never_share_a_document() -> None:
    one, other = MergeState(), MergeState()
    one.fold(event(b'{"a":1}'))
    assert rendered(other) == b'{"state":{}}'


@given(json_values, st.lists(json_values, max_size=4))
def test_a_merge_folded_here_equals_one_folded_in_the_store(
    first: object, patches: list[object]
) -> None:
    state = MergeState(b"j" + dump_json(first))
    stored = first
    for patch in patches:
        state.fold(event(dump_json(patch)))
        stored = merge_patch(stored, patch)
    assert rendered(state) == rendered(MergeState(b"j" + dump_json(stored)))


def test_keyed_keeps_the_latest_of_each_key_and_empty_data_deletes() -> None:
    state = load_state(
        Reducer.KEYED, {b"#": b"17", b"kb": b"t\xc3\xa9", b"ka": b"j{ }", "ké".encode(): b"j1"}
    )
    assert rendered(state) == '{"state":{"a":{ },"b":"é","é":1}}'.encode()
    state.fold(event(b"2.0", key="b"))
    state.fold(event(b"text", json=False, key="c"))
    state.fold(event(b"", key="a"))
    state.fold(event(b"", key="never there"))
    assert rendered(state) == '{"state":{"b":2.0,"c":"text","é":1}}'.encode()


keyed_events = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "é", "#", "k"]), st.sampled_from([b"", b"1", b"[2]"])),
    max_size=30,
)


@given(keyed_events)
def test_a_keyed_state_folded_here_equals_one_loaded_from_the_store(
    events: list[tuple[str, bytes]],
) -> None:
    state = KeyedState()
    stored: dict[bytes, bytes] = {b"#": b"0"}
    for key, data in events:
        state.fold(event(data, key=key))
        stored[b"k" + key.encode()] = b"j" + data
        if not data:
            del stored[b"k" + key.encode()]
    loaded = load_state(Reducer.KEYED, stored)
    assert rendered(state) == rendered(loaded)
    assert state.size_bytes == loaded.size_bytes


def test_a_keyed_state_counts_its_keys_and_data() -> None:
    state = KeyedState()
    empty = state.size_bytes
    state.fold(event(b"1" * 1000, key="k" * 200))
    assert state.size_bytes > empty + 1200
    state.fold(event(b"1", key="k" * 200))
    assert empty + 200 < state.size_bytes < empty + 1000
    state.fold(event(b"", key="k" * 200))
    assert state.size_bytes == empty


def test_a_loaded_state_does_not_change_what_it_was_loaded_from() -> None:
    values: Mapping[str, tuple[bool, bytes]] = {"a": (True, b"1")}
    state = KeyedState(values)
    state.fold(event(b"", key="a"))
    assert values == {"a": (True, b"1")}


def test_no_state_stays_empty() -> None:
    state = NoState()
    state.fold(event(b"1"))
    assert state.value() is None


@given(json_values, st.sampled_from([Reducer.LAST, Reducer.MERGE, Reducer.KEYED]))
def test_every_state_is_json(value: object, reducer: Reducer) -> None:
    state = load_state(reducer, {})
    state.fold(event(orjson.dumps(str(value)), key="k"))
    json.loads(rendered(state))


@pytest.mark.parametrize("reducer", list(Reducer))
def test_an_event_with_key_and_json_suits_every_reducer(reducer: Reducer) -> None:
    check_foldable(NewEvent("a", b"1", json=True, key="k"), reducer)


def test_keyed_needs_a_key_and_merge_needs_json() -> None:
    with pytest.raises(InvalidField, match="key: is needed"):
        check_foldable(NewEvent("a", b"1", json=True), Reducer.KEYED)
    with pytest.raises(InvalidField, match="data: must be JSON"):
        check_foldable(NewEvent("a", b"1"), Reducer.MERGE)
    check_foldable(NewEvent("a", b"", key="k"), Reducer.KEYED)
    check_foldable(NewEvent("a", b"x"), Reducer.LAST)
    check_foldable(NewEvent("a", b"x"), Reducer.NONE)


@pytest.mark.parametrize("data", [b'""', b' ""\n'])
def test_an_empty_json_string_looks_like_a_deletion_and_is_no_value_of_a_key(data: bytes) -> None:
    event = NewEvent("a", data, json=True, key="k")
    with pytest.raises(InvalidField, match="empty data deletes the key"):
        check_foldable(event, Reducer.KEYED)
    check_foldable(event, Reducer.LAST)
    check_foldable(NewEvent("a", b'["", "a"]', json=True, key="k"), Reducer.KEYED)
