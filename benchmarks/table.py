"""Samples as a plain table: medians, spread and ratios; it measures and judges nothing."""

import statistics
from collections.abc import Sequence

from benchmarks.bench import Column, Sample, Scenario

RATIOS = ("nchan", "roof", "roof-joining")


def render(scenario: Scenario, samples: Sequence[Sample]) -> str:
    """Return a scenario's table, aligned, with a line for each case and server."""
    references = [name for name in RATIOS if any(sample.server == name for sample in samples)]
    head = ["", "", scenario.columns[0].title, "(spread)"]
    head += [column.title for column in scenario.columns[1:]]
    head += [f"/ {name}" for name in references]
    rows = [head]
    last_case = None
    for case, server in _groups(samples):
        row = [case if case != last_case else "", server]
        last_case = case
        row += _spread(scenario.columns[0], _values(samples, case, server, scenario.columns[0]))
        for column in scenario.columns[1:]:
            row.append(_spell(column, _values(samples, case, server, column)))
        for reference in references:
            row.append(_ratio(samples, case, server, reference, scenario.columns[0]))
        rows.append(row)
    return "\n".join([scenario.title, *_aligned(rows), *_problem_lines(samples)])


def median(samples: Sequence[Sample], case: str, server: str, key: str) -> float | None:
    """Return the median of one figure, None where there is none."""
    values = [
        sample.figures[key]
        for sample in samples
        if (sample.case, sample.server) == (case, server) and key in sample.figures
    ]
    return statistics.median(values) if values else None


def _groups(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Return cases with their servers, both in the order in which they came."""
    cases = list(dict.fromkeys(sample.case for sample in samples if sample.figures))
    found = []
    for case in cases:
        servers = dict.fromkeys(sample.server for sample in samples if sample.case == case)
        found += [(case, server) for server in servers]
    return found


def _values(samples: Sequence[Sample], case: str, server: str, column: Column) -> list[float]:
    return [
        sample.figures[column.key] * column.scale
        for sample in samples
        if (sample.case, sample.server) == (case, server) and column.key in sample.figures
    ]


def _spell(column: Column, values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.{column.digits}f}" if values else "-"


def _spread(column: Column, values: Sequence[float]) -> list[str]:
    if len(values) < 2:
        return [_spell(column, values), ""]
    spread = f"({min(values):,.{column.digits}f} to {max(values):,.{column.digits}f})"
    return [_spell(column, values), spread]


def _ratio(
    samples: Sequence[Sample], case: str, server: str, reference: str, column: Column
) -> str:
    own = median(samples, case, server, column.key)
    other = median(samples, case, reference, column.key)
    return f"{own / other:.2f}" if own is not None and other and server != reference else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _problem_lines(samples: Sequence[Sample]) -> list[str]:
    notes = {
        f"  {sample.server}, {sample.case}: {sample.note}": None
        for sample in samples
        if sample.note
    }
    return list(notes) + [
        f"  NOT COMPLETE: {sample.server}, {sample.case or 'all'}: {', '.join(sample.problems)}"
        for sample in samples
        if sample.problems
    ]
