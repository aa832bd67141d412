"""The scenarios, by name, in the order in which `all` runs them."""

from benchmarks.bench import Scenario
from benchmarks.scenarios.burst import BURST
from benchmarks.scenarios.compress import COMPRESS
from benchmarks.scenarios.connects import CONNECTS
from benchmarks.scenarios.fanout import FANOUT
from benchmarks.scenarios.growth import GROWTH
from benchmarks.scenarios.idle import IDLE
from benchmarks.scenarios.latency import LATENCY
from benchmarks.scenarios.mixed import MIXED
from benchmarks.scenarios.publish import PUBLISH
from benchmarks.scenarios.slow import SLOW_READERS
from benchmarks.scenarios.steady import STEADY
from benchmarks.scenarios.storm import STORM

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        FANOUT,
        STEADY,
        LATENCY,
        BURST,
        STORM,
        SLOW_READERS,
        IDLE,
        CONNECTS,
        PUBLISH,
        MIXED,
        COMPRESS,
        GROWTH,
    )
}
