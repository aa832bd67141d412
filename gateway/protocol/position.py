"""Positions: the ids of events, strictly increasing over their namespace."""

import re
from typing import NamedTuple

from gateway.protocol.errors import InvalidField

_POSITION = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})", re.ASCII)
_LARGEST = 2**53 - 1  # The store's scripts count in doubles; beyond this they lose exactness.


class Position(NamedTuple):
    """`<milliseconds>-<sequence>`; compares as a tuple (in C, on every delivery's path)."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str, field: str = "id") -> "Position":
        """Return the position that `text` spells; raises InvalidField naming `field`."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise InvalidField(field, text, "must be <milliseconds>-<sequence>")
        position = cls(int(match[1]), int(match[2]))
        if position.ms > _LARGEST or position.seq > _LARGEST:
            raise InvalidField(field, text, f"must not exceed {_LARGEST} in either part")
        return position


ORIGIN = Position(0, 0)
"""Before every event."""
