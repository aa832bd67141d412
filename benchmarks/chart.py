"""Samples as a PNG: medians with their spread, as bars or as lines; needs matplotlib."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench import Column, Sample, Scenario

PANEL_INCHES = (7.5, 4.2)
PANELS_IN_A_ROW = 2
COLOURS = {
    "gateway": "#1f6feb",
    "nchan": "#2da44e",
    "roof": "#57606a",
    "roof-joining": "#8c959f",
    "better-sse": "#bf8700",
    "aiohttp-sse": "#8250df",
    "sse-starlette": "#cf222e",
}


class Panel(NamedTuple):
    """One figure of some samples; as lines where their cases are numbers."""

    title: str
    column: Column
    samples: list[Sample]
    number_of: str = ""
    """What the cases number; empty for bars."""


class NoMatplotlibError(Exception):
    """The library that draws is not installed."""


def draw(path: Path, measured: Sequence[tuple[Scenario, Sequence[Sample]]]) -> None:
    """Write one chart of all scenarios.

    Raises NoMatplotlibError.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoMatplotlibError("no chart: pip install matplotlib") from None
    panels = [panel for scenario, samples in measured for panel in _panels(scenario, samples)]
    columns = min(PANELS_IN_A_ROW, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        (_draw_lines if panel.number_of else _draw_bars)(axis, panel)
        axis.set_ylabel(panel.column.title)
        axis.set_title(panel.title, fontsize=9, wrap=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _panels(scenario: Scenario, samples: Sequence[Sample]) -> list[Panel]:
    """Return what is drawn apart: where cases vary several things, each thing by itself."""
    if not scenario.lines:
        column = scenario.columns[0]
        drawn = [sample for sample in samples if column.key in sample.figures]
        return [Panel(f"{scenario.name}: {scenario.title}", column, drawn)] if drawn else []
    numbered = [sample for sample in samples if sample.case]
    return [
        Panel(
            f"{scenario.name}: {column.title} by {kind}",
            column,
            [sample for sample in numbered if sample.case.startswith(f"{kind}:")],
            kind,
        )
        for kind in dict.fromkeys(sample.case.split(":")[0] for sample in numbered)
        for column in scenario.lines
    ]


def _spread(panel: Panel, server: str, case: str) -> tuple[float, float, float] | None:
    """Return the least, the median and the most; None where nothing was measured."""
    values = [
        sample.figures[panel.column.key] * panel.column.scale
        for sample in panel.samples
        if (sample.case, sample.server) == (case, server) and panel.column.key in sample.figures
    ]
    return (min(values), statistics.median(values), max(values)) if values else None


def _measured(panel: Panel, server: str, cases: Sequence[str]) -> tuple[list[int], Any, Any]:
    """Return which cases a server has, their medians, and how far the others are from them."""
    found = {index: _spread(panel, server, case) for index, case in enumerate(cases)}
    spreads = {index: spread for index, spread in found.items() if spread}
    medians = [middle for _, middle, _ in spreads.values()]
    below = [middle - least for least, middle, _ in spreads.values()]
    above = [most - middle for _, middle, most in spreads.values()]
    return list(spreads), medians, (below, above)


def _draw_bars(axis: Any, panel: Panel) -> None:
    cases = list(dict.fromkeys(sample.case for sample in panel.samples))
    servers = list(dict.fromkeys(sample.server for sample in panel.samples))
    digits = panel.column.digits
    width = 0.8 / len(servers)
    for place, server in enumerate(servers):
        indexes, heights, around = _measured(panel, server, cases)
        bars = axis.bar(
            [index + (place - (len(servers) - 1) / 2) * width for index in indexes],
            heights, width * 0.92, yerr=around, label=server,
            color=COLOURS.get(server), error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
        )  # fmt: skip
        axis.bar_label(bars, [f"{height:,.{digits}f}" for height in heights], fontsize=7)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.yaxis.set_major_formatter("{x:,.4g}" if digits else "{x:,.0f}")


def _draw_lines(axis: Any, panel: Panel) -> None:
    """Draw with logarithmic axes: what grows in proportion is a straight line."""
    cases = list(dict.fromkeys(sample.case for sample in panel.samples))
    numbers = [float(case.rpartition(":")[2].replace(",", "")) for case in cases]
    for server in dict.fromkeys(sample.server for sample in panel.samples):
        indexes, heights, around = _measured(panel, server, cases)
        axis.errorbar(
            [numbers[index] for index in indexes], heights, yerr=around, label=server,
            color=COLOURS.get(server), marker="o", markersize=4, capsize=2, elinewidth=0.8,
        )  # fmt: skip
        for index, height in zip(indexes, heights, strict=True):
            axis.annotate(
                f"{height:,.{panel.column.digits}f}", (numbers[index], height),
                (0, 5), textcoords="offset points", ha="center", fontsize=7,
            )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    # Whole decades, so that a small difference does not look like a large one.
    least, most = (math.log10(limit) for limit in axis.get_ylim())
    axis.set_ylim(10 ** math.floor(least), 10 ** math.ceil(most))
    axis.grid(axis="y", linewidth=0.4)
    axis.minorticks_off()
    axis.set_xticks(numbers, [f"{number:,.0f}" for number in numbers], fontsize=8)
    axis.yaxis.set_major_formatter("{x:,.4g}")
    axis.set_xlabel(panel.number_of)
