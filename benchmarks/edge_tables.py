"""What a part of the edge's benchmark found, as a Markdown table; it measures nothing."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

Cell = str | int | float


@dataclass
class Found:
    """The table of one part, what is to be said below it, and what was not complete."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def medians(runs: Sequence[Found]) -> Found:
    """Return one table of the runs' medians, cell by cell, and what was not complete in any.

    All have the same rows; what is no figure is the same in all.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    rows: list[Sequence[Cell]] = [[_median(cells) for cells in zip(*same, strict=True)]
            for same in zip(*(run.rows for run in runs), strict=True)]  # fmt: skip
    problems = [
        f"run {number}: {problem}" for number, run in enumerate(runs, 1) for problem in run.problems
    ]
    return replace(
        first, rows=rows, notes=[*first.notes, f"Medians of {len(runs)} runs."], problems=problems
    )


def _median(cells: Sequence[Cell]) -> Cell:
    figures = [cell for cell in cells if not isinstance(cell, str)]
    return statistics.median(figures) if len(figures) == len(cells) else cells[0]


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
