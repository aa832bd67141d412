"""Tables show medians, ratios and what was not complete."""

from collections.abc import Iterator

from benchmarks.bench import Bench, Column, Contender, Sample, Scenario
from benchmarks.table import render


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    raise NotImplementedError


SCENARIO = Scenario(
    name="speed",
    title="how fast",
    measure=measure,
    columns=(Column("speed", "events/s"), Column("cpu", "server %", 0, 100)),
)


def test_a_row_has_medians_spread_and_the_ratio_to_each_reference() -> None:
    samples = [
        *(Sample("gateway", "few", {"speed": value, "cpu": 0.5}) for value in (3000, 1000, 2000)),
        Sample("nchan", "few", {"speed": 500.0}),
    ]

    lines = render(SCENARIO, samples).splitlines()

    assert lines[0] == "how fast"
    assert lines[1].split() == ["events/s", "(spread)", "server", "%", "/", "nchan"]
    assert lines[2] == "few  gateway     2,000  (1,000 to 3,000)        50     4.00"
    assert lines[3].split() == ["nchan", "500", "-", "-"]


def test_a_run_that_was_not_complete_is_named() -> None:
    samples = [Sample("nchan", "few", {"speed": 1.0}, ["2 missing"])]

    assert "NOT COMPLETE: nchan, few: 2 missing" in render(SCENARIO, samples)
