"""Stored states: what they load as is what their channel's events add up to."""

import json
import random

import pytest

from gateway.protocol.event import NewEvent
from gateway.protocol.json_value import dump_json
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.state import State, load_state
from tests.running import Valkey
from tests.store.opening import new, open_publisher, open_store

NAMES = ("ns/a", "ns/b")


def random_event(chance: random.Random, reducer: Reducer) -> NewEvent:
    channel = chance.choice(NAMES)
    if reducer is Reducer.MERGE:
        values: tuple[object, ...] = (None, [], 2**70, {"x": chance.random()})
        patch = {chance.choice("abc"): chance.choice(values)}
        return new(channel, json.dumps(patch))
    key = chance.choice("klm")
    if chance.random() < 0.3:
        return new(channel, "", key=key)
    text = chance.random() < 0.3
    return new(channel, str(chance.random()), json=not text, key=key)


def rendered(state: State) -> bytes:
    return dump_json({"state": state.value()})


@pytest.mark.parametrize("reducer", Reducer)
async def test_a_stored_state_is_the_fold_of_its_events(redis: Valkey, reducer: Reducer) -> None:
    rules = Namespace("ns", reducer)
    chance = random.Random(reducer)
    async with open_publisher(redis.url, rules) as publisher, open_store(redis.url, rules) as store:
        for _ in range(30):
            batch = [random_event(chance, reducer) for _ in range(chance.randint(1, 5))]
            await publisher.publish("ns", batch)
            _, contents, _ = await store.read("ns", NAMES, "both")
            for content in contents:
                folded = load_state(reducer, {})
                for event in content.ring:
                    folded.fold(event)
                assert rendered(load_state(reducer, content.state)) == rendered(folded)
        await publisher.delete("ns", "ns/a")
        _, contents, _ = await store.read("ns", NAMES, "state")
        assert contents[0].state == {}
        assert bool(contents[1].state) == (reducer is not Reducer.NONE)
