"""Samples as a PNG: one panel a scenario, medians with their spread; needs matplotlib."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import Sample, Scenario

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
    for axis, (scenario, title, samples) in zip(axes, panels, strict=False):
        _draw_bars(axis, scenario, title, samples)
    figure.savefig(path, dpi=110)


def _panels(
    scenario: Scenario, samples: Sequence[Sample]
) -> list[tuple[Scenario, str, list[Sample]]]:
    """Return what is drawn apart: where cases vary several things, each thing by itself."""
    drawn = [sample for sample in samples if scenario.columns[0].key in sample.figures]
    if scenario.name != "growth":
        return [(scenario, scenario.title, drawn)] if drawn else []
    kinds = dict.fromkeys(sample.case.split(":")[0] for sample in drawn)
    return [
        (scenario, f"cost by {kind}", [s for s in drawn if s.case.startswith(f"{kind}:")])
        for kind in kinds
    ]


def _draw_bars(axis: Any, scenario: Scenario, title: str, samples: Sequence[Sample]) -> None:
    column = scenario.columns[0]
    cases = list(dict.fromkeys(sample.case for sample in samples))
    servers = list(dict.fromkeys(sample.server for sample in samples))
    width = 0.8 / len(servers)
    for place, server in enumerate(servers):
        positions, heights, below, above = [], [], [], []
        for index, case in enumerate(cases):
            values = sorted(
                sample.figures[column.key] * column.scale
                for sample in samples
                if (sample.case, sample.server) == (case, server)
            )
            if not values:
                continue
            middle = statistics.median(values)
            positions.append(index + (place - (len(servers) - 1) / 2) * width)
            heights.append(middle)
            below.append(middle - values[0])
            above.append(values[-1] - middle)
        bars = axis.bar(
            positions, heights, width * 0.92, yerr=(below, above), label=server,
            color=COLOURS.get(server), error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
        )  # fmt: skip
        axis.bar_label(bars, [f"{height:,.{column.digits}f}" for height in heights], fontsize=7)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.yaxis.set_major_formatter("{x:,.4g}" if column.digits else "{x:,.0f}")
    axis.set_ylabel(column.title)
    axis.set_title(f"{scenario.name}: {title}", fontsize=9, wrap=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
