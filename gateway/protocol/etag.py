"""Entity tags: of a snapshot's variants, and of the conditions that requests set on them.

Source: RFC 9110 8.8.3 (entity tags), 13.1.1 (If-Match), 13.1.2 (If-None-Match).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

from gateway.protocol.errors import InvalidField
from gateway.protocol.position import Position

DIGEST_BYTES = 8
"""Bytes of a digest: it tells apart renderings of ONE position, so 64 bits are plenty."""

# One element of a list, empty ones included (RFC 9110 5.6.1.2), with what ends it. A tag holds
# any visible character but the double quote. Possessive, so that no input is read twice.
_ELEMENT = re.compile(r'[ \t]*+(?:(W/)?"([^\x00-\x20"\x7f]*+)"[ \t]*+)?(?:,|\Z)')
# The last part is any token: Apache's mod_deflate turns `identity` into `identity-gzip`.
_SNAPSHOT = re.compile(
    r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,16}-[0-9]{1,16})\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{1,64})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class EntityTag:
    """One entity tag as a request spells it; `opaque` is what stands between the quotes."""

    opaque: str
    weak: bool = False

    def __str__(self) -> str:
        return f'W/"{self.opaque}"' if self.weak else f'"{self.opaque}"'


@dataclass(frozen=True, slots=True)
class AnyTag:
    """The condition `*`: whatever the current representation is."""


@dataclass(frozen=True, slots=True)
class SnapshotTag:
    """The strong tag of one variant of a snapshot.

    `epoch`, `digest` and `coding` are 1 to 64 of `A-Z a-z 0-9 _ -`. Its text is the value of
    the ETag field, quotes included: `"<epoch>.<ms>-<seq>.<digest>.<coding>"`.
    """

    epoch: str
    position: Position
    digest: str
    coding: str

    def __str__(self) -> str:
        return f'"{self.epoch}.{self.position}.{self.digest}.{self.coding}"'

    @classmethod
    def parse(cls, opaque: str) -> "SnapshotTag | None":
        """Return the tag whose text between the quotes is `opaque`; None for another's tag."""
        match = _SNAPSHOT.fullmatch(opaque)
        if match is None:
            return None
        try:
            position = Position.parse(match[2])
        except InvalidField:
            return None
        return cls(match[1], position, match[3], match[4])

    def is_variant_of(self, other: "SnapshotTag") -> bool:
        """Tell whether both are the same snapshot, be it in two codings."""
        return (self.epoch, self.position, self.digest) == (
            other.epoch,
            other.position,
            other.digest,
        )


@dataclass(frozen=True, slots=True)
class Proceed:
    """The caller has something else, or nothing: answer in full."""


@dataclass(frozen=True, slots=True)
class NotModified:
    """The caller has this snapshot already: 304, with `tag` as its ETag.

    `tag` is the one that the caller holds, whichever variant: a cache freshens what it stored
    only when the 304 names that very tag (RFC 9111 4.3.4).
    """

    tag: EntityTag


def digest_body(body: bytes) -> str:
    """Return the digest of a snapshot's bytes in no coding, 16 hexadecimal digits."""
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest()


def parse_entity_tags(header: str, field: str = "If-None-Match") -> AnyTag | list[EntityTag]:
    """Return what an `If-Match` or `If-None-Match` names, in order; several fields joined by comma.

    Linear in the header's length. Raises InvalidField naming `field` when the grammar is broken.
    """
    if header.strip(" \t") == "*":
        return AnyTag()
    tags: list[EntityTag] = []
    start = 0
    while start < len(header):
        match = _ELEMENT.match(header, start)
        if match is None:
            raise InvalidField(field, header[:300], 'must be * or a list such as "a", W/"b"')
        if match[2] is not None:
            tags.append(EntityTag(match[2], weak=match[1] is not None))
        start = match.end()
    return tags


def read_if_none_match(header: str | None) -> AnyTag | list[EntityTag]:
    """Return what a GET's or HEAD's `If-None-Match` names; nothing when it breaks the grammar.

    Such a header is no condition: a full answer is right for everybody.
    """
    try:
        return parse_entity_tags(header or "")
    except InvalidField:
        return []


def evaluate_if_none_match(header: str | None, current: SnapshotTag) -> Proceed | NotModified:
    """Tell whether a GET or HEAD with this `If-None-Match` needs an answer in full."""
    named = read_if_none_match(header)
    if isinstance(named, AnyTag):
        return NotModified(EntityTag(str(current)[1:-1]))
    held = [
        (snapshot.coding == current.coding, tag)
        for snapshot, tag in _snapshots(named)
        if snapshot.is_variant_of(current)
    ]
    if not held:
        return Proceed()
    # Of its variants the one that would be sent: a cache may name several.
    return NotModified(max(held, key=itemgetter(0))[1])


def newest_held(header: str | None, epoch: str) -> tuple[Position, EntityTag] | None:
    """Return the newest snapshot of `epoch` that `If-None-Match` shows the caller to have.

    A worker that is behind it must not take a cache back in time. None when there is none.
    """
    named = read_if_none_match(header)
    if isinstance(named, AnyTag):
        return None
    held = (
        (snapshot.position, tag) for snapshot, tag in _snapshots(named) if snapshot.epoch == epoch
    )
    return max(held, key=itemgetter(0), default=None)


def _snapshots(tags: Iterable[EntityTag]) -> Iterator[tuple[SnapshotTag, EntityTag]]:
    """Yield the tags that are of snapshots, W/ or not: weak comparison, RFC 9110 13.1.2."""
    for tag in tags:
        snapshot = SnapshotTag.parse(tag.opaque)
        if snapshot is not None:
            yield snapshot, tag
