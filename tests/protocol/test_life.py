"""Which positions a store can vouch for."""

from dataclasses import replace

from gateway.protocol.life import Cut, Life
from gateway.protocol.position import ORIGIN, Position

LIFE = Life("e1", "3@9-0", clock=Position(90, 0), floor=Position(10, 5), last=Position(80, 0))


def test_a_cut_holds_what_lies_strictly_inside() -> None:
    cut = Cut(Position(20, 1), Position(30, 0))
    assert not cut.holds(Position(20, 1))
    assert cut.holds(Position(20, 2))
    assert cut.holds(Position(29, 9))
    assert not cut.holds(Position(30, 0))


def test_positions_from_the_floor_on_are_vouched_for() -> None:
    assert LIFE.vouches_for(Position(10, 5))
    assert LIFE.vouches_for(Position(50, 0))
    assert not LIFE.vouches_for(Position(10, 4))
    assert not LIFE.vouches_for(ORIGIN)


def test_positions_inside_any_cut_are_not_vouched_for() -> None:
    cuts = (Cut(Position(20, 0), Position(30, 0)), Cut(Position(40, 0), Position(50, 0)))
    life = replace(LIFE, cuts=cuts)
    assert [ms for ms in range(15, 60) if not life.vouches_for(Position(ms, 0))] == [
        *range(21, 30),
        *range(41, 50),
    ]


def test_a_history_is_its_epoch_and_generation() -> None:
    assert LIFE.same_history(replace(LIFE, clock=Position(99, 0), last=Position(98, 0)))
    assert not LIFE.same_history(replace(LIFE, generation="4@9-0"))
    assert not LIFE.same_history(replace(LIFE, epoch="e2"))
