"""What a check found: its name, how bad it is, what it means, and what mends it."""

from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. A fault breaks what readers rely on, a warning costs them or the gateway."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `mend` are lines of configuration, each with the program that it is for."""

    check: str
    level: Level
    text: str
    mend: tuple[str, ...] = field(default=())


def ok(check: str, text: str) -> Finding:
    """Return what is as it should be."""
    return Finding(check, Level.OK, text)


def warning(check: str, text: str, *mend: str) -> Finding:
    """Return what could be better."""
    return Finding(check, Level.WARNING, text, mend)


def fault(check: str, text: str, *mend: str) -> Finding:
    """Return what is wrong."""
    return Finding(check, Level.FAULT, text, mend)
