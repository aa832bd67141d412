"""The rules that a namespace has when nobody says otherwise."""

from gateway.protocol.cache_control import check_policy
from gateway.protocol.namespace import Namespace, Reducer


def test_the_defaults_keep_the_cache_law() -> None:
    namespace = Namespace("default")
    check_policy(namespace.cache, namespace.ring_age_seconds)
    assert namespace.reducer is Reducer.LAST
    assert not namespace.protected


def test_reducers_are_named_as_in_the_configuration() -> None:
    assert [str(reducer) for reducer in Reducer] == ["last", "merge", "keyed", "none"]
