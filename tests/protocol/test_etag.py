"""Entity tags of snapshots, and what conditional requests make of them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import InvalidField
from gateway.protocol.etag import (
    AnyTag,
    EntityTag,
    NotModified,
    Proceed,
    SnapshotTag,
    digest_body,
    evaluate_if_none_match,
    newest_held,
    parse_entity_tags,
    read_if_none_match,
)
from gateway.protocol.position import Position

CURRENT = SnapshotTag("e1", Position(1700, 3), "d1", "br")
tokens = st.text("ABCxyz019_-", min_size=1, max_size=64)
positions = st.builds(Position, st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1))
snapshot_tags = st.builds(SnapshotTag, tokens, positions, tokens, tokens)
opaque_texts = st.text(st.characters(min_codepoint=0x21, exclude_characters='"\x7f'), max_size=30)


def test_a_tag_is_written_with_its_quotes() -> None:
    assert str(CURRENT) == '"e1.1700-3.d1.br"'
    assert str(EntityTag("a")) == '"a"'
    assert str(EntityTag("a", weak=True)) == 'W/"a"'


@given(snapshot_tags)
def test_a_tag_survives_its_text(tag: SnapshotTag) -> None:
    assert parse_entity_tags(str(tag)) == [EntityTag(str(tag)[1:-1])]
    assert SnapshotTag.parse(str(tag)[1:-1]) == tag


@pytest.mark.parametrize(
    "opaque",
    [
        "",
        "abc",
        "e1.1700-3.d1",
        "e1.1700-3.d1.br.x",
        "e1.1700.d1.br",
        "e1.01700-3.d1.br",
        "e1.9007199254740992-0.d1.br",
        ".1700-3.d1.br",
        "e1.1700-3..br",
        "e1.1700-3.d1.",
        "é.1700-3.d1.br",
        "e1.17\u0660\u0660-3.d1.br",
        "e" * 65 + ".1700-3.d1.br",
        "e1.1700-3.d1.br\n",
    ],
)
def test_another_makers_tag_names_no_snapshot(opaque: str) -> None:
    assert SnapshotTag.parse(opaque) is None


def test_the_digest_tells_bodies_apart() -> None:
    assert digest_body(b"a") == digest_body(b"a")
    assert digest_body(b"a") != digest_body(b"b")
    assert SnapshotTag.parse(f"e.1-0.{digest_body(b'')}.br") is not None


@pytest.mark.parametrize(
    ("header", "tags"),
    [
        ("*", AnyTag()),
        (" \t*\t ", AnyTag()),
        ("", []),
        (" \t ", []),
        (",", []),
        (", ,,", []),
        ('"a"', [EntityTag("a")]),
        ('""', [EntityTag("")]),
        ('W/"a"', [EntityTag("a", weak=True)]),
        ('"a","b"', [EntityTag("a"), EntityTag("b")]),
        (' "a" ,\tW/"b" , ', [EntityTag("a"), EntityTag("b", weak=True)]),
        ('"a,b", "c"', [EntityTag("a,b"), EntityTag("c")]),
        ('"W/"', [EntityTag("W/")]),
        ('"*"', [EntityTag("*")]),
        (r'"a\"', [EntityTag("a\\")]),  # no escapes: RFC 9110 8.8.3
        ('"\u00e9\udcff"', [EntityTag("\u00e9\udcff")]),
    ],
)
def test_lists_weak_forms_and_the_star_are_read(
    header: str, tags: AnyTag | list[EntityTag]
) -> None:
    assert parse_entity_tags(header) == tags


@pytest.mark.parametrize(
    "header",
    [
        "a",
        '"a',
        'a"',
        '"a" "b"',
        'w/"a"',
        'W/ "a"',
        "W/",
        "W/*",
        '*, "a"',
        '"a", *',
        "**",
        '"a b"',
        '"a\tb"',
        '"a\x7f"',
        '"a"\n',
        '"a";q=1',
    ],
)
def test_a_broken_header_is_named_with_its_value(header: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_entity_tags(header, "If-Match")
    assert (caught.value.field, caught.value.value) == ("If-Match", header)
    # As a condition of a GET it counts for nothing.
    assert read_if_none_match(header) == []
    assert evaluate_if_none_match(header, CURRENT) == Proceed()
    assert newest_held(header, "e1") is None


def test_a_long_broken_header_is_cut_in_the_error() -> None:
    with pytest.raises(InvalidField) as caught:
        parse_entity_tags("x" * 8192)
    assert caught.value.value == "x" * 300


@given(st.lists(st.builds(EntityTag, opaque_texts, st.booleans()), max_size=8), st.data())
def test_any_list_of_tags_is_read_back(tags: list[EntityTag], data: st.DataObject) -> None:
    blanks = st.text(" \t", max_size=3)
    header = ",".join(f"{data.draw(blanks)}{tag}{data.draw(blanks)}" for tag in tags)
    assert parse_entity_tags(header) == tags


@given(st.text('"W/*,ab \t\\', max_size=40))
def test_every_header_is_read_or_refused(header: str) -> None:
    try:
        tags = parse_entity_tags(header)
    except InvalidField:
        return
    if not isinstance(tags, AnyTag):
        assert parse_entity_tags(", ".join(map(str, tags))) == tags


@pytest.mark.parametrize(
    "piece", [" ", "\t", '"', "W", "W/", 'W/"', "W/W/", '"a"', '"a", ', '"a" ', ",", " ,", "*", "a"]
)
def test_a_header_of_8_kib_is_read_quickly(piece: str) -> None:
    header = (piece * 8192)[:8192] + "\x00"
    started = time.process_time()
    evaluate_if_none_match(header, CURRENT)
    newest_held(header, "e1")
    # It takes about 2 ms; a pattern that goes back over its input takes seconds.
    assert time.process_time() - started < 0.25


def test_a_full_header_of_real_tags_is_read_quickly() -> None:
    header = ", ".join(f'W/"e1.{ms}-0.{"d" * 16}.gzip"' for ms in range(1000, 1220))
    assert len(header) > 8000
    started = time.process_time()
    held = newest_held(header, "e1")
    assert held is not None
    assert held[0] == Position(1219, 0)
    assert evaluate_if_none_match(header, CURRENT) == Proceed()
    assert time.process_time() - started < 0.25


@pytest.mark.parametrize(
    "tag",
    [
        EntityTag("e1.1700-3.d1.br"),
        EntityTag("e1.1700-3.d1.br", weak=True),
        EntityTag("e1.1700-3.d1.identity"),
        EntityTag("e1.1700-3.d1.gzip", weak=True),
        EntityTag("e1.1700-3.d1.identity-gzip"),  # as Apache's mod_deflate changes it
    ],
)
def test_every_variant_of_the_current_snapshot_matches(tag: EntityTag) -> None:
    assert evaluate_if_none_match(str(tag), CURRENT) == NotModified(tag)
    assert evaluate_if_none_match(f'"other", {tag} , "x"', CURRENT) == NotModified(tag)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        '"abc"',
        '"e2.1700-3.d1.br"',
        '"e1.1700-3.d2.br"',
        '"e1.1700-2.d1.br"',
        '"e1.1699-9.d1.br"',
        '"e1.1800-0.d1.br"',
        '"e2.1800-0.d1.br"',
    ],
)
def test_anything_else_is_answered_in_full(header: str | None) -> None:
    assert evaluate_if_none_match(header, CURRENT) == Proceed()


def test_the_star_matches_whatever_is_current() -> None:
    assert evaluate_if_none_match("*", CURRENT) == NotModified(EntityTag("e1.1700-3.d1.br"))


def test_of_several_variants_the_one_that_would_be_sent_is_named() -> None:
    names = '"e1.1700-3.d1.gzip", "e1.1700-3.d1.br", "e1.1700-3.d1.zstd"'
    assert evaluate_if_none_match(names, CURRENT) == NotModified(EntityTag("e1.1700-3.d1.br"))


def test_the_newest_snapshot_of_the_epoch_is_what_the_caller_has() -> None:
    header = '"e1.9-0.d.br", W/"e1.10-2.d.gzip", "e1.10-1.d.br", "e2.99-0.d.br", "x"'
    weak = EntityTag("e1.10-2.d.gzip", weak=True)
    assert newest_held(header, "e1") == (Position(10, 2), weak)
    assert newest_held(header, "e2") == (Position(99, 0), EntityTag("e2.99-0.d.br"))
    assert newest_held(header, "e3") is None
    assert newest_held("*", "e1") is None
    assert newest_held(None, "e1") is None


@given(st.lists(snapshot_tags, max_size=6), snapshot_tags)
def test_a_304_always_names_a_tag_that_the_caller_gave(
    held: list[SnapshotTag], current: SnapshotTag
) -> None:
    held = [SnapshotTag(current.epoch, tag.position, tag.digest, tag.coding) for tag in held]
    header = ", ".join(map(str, held))
    for known in (held, [*held, current]):
        outcome = evaluate_if_none_match(", ".join(map(str, known)), current)
        assert isinstance(outcome, NotModified) == any(tag.is_variant_of(current) for tag in known)
        if isinstance(outcome, NotModified):
            assert str(outcome.tag) in map(str, known)
    newest = newest_held(header, current.epoch)
    assert (newest and newest[0]) == max((tag.position for tag in held), default=None)
    assert newest is None or str(newest[1]) in map(str, held)
