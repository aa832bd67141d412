"""What a part of the edge's benchmark found, as a Markdown table; it measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | int | float


@dataclass
class Found:
    """The table of one part, what is to be said below it, and what was not complete."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def render(found: Found) -> str:
    """Return the table in Markdown, its problems named below it."""
    rows = [[spell(cell) for cell in row] for row in [found.head, *found.rows]]
    rules = ["---", *("---:" for _ in found.head[1:])]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rules, *rows[1:]]]
    below = [*found.notes, *(f"NOT COMPLETE: {problem}" for problem in found.problems)]
    return "\n".join([f"### {found.title}", "", *lines, *("\n" + line for line in below)])


def spell(cell: Cell) -> str:
    """Return a figure with as many digits as mean something."""
    if isinstance(cell, float):
        digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2
        return f"{cell:,.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def percentile(values: Sequence[float], part: float) -> float:
    """Return a percentile by nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
