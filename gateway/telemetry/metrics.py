"""Metrics in the Prometheus format, read off the components' own counters when asked."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

_LATENCY_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

Read = Callable[[], float]


class _Readings(Collector):
    def __init__(
        self, gauges: Mapping[str, tuple[str, Read]], counters: Mapping[str, tuple[str, Read]]
    ) -> None:
        self._gauges = gauges
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(name, text, value=read())
        for name, (text, read) in self._counters.items():
            yield CounterMetricFamily(name, text, value=read())


class Metrics:
    """One registry of this process; no labels, so its size never grows."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.publish_seconds = Histogram(
            "sse_gateway_publish_seconds", "From a publish request to its answer.",
            buckets=_LATENCY_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.delivery_seconds = Histogram(
            "sse_gateway_delivery_seconds", "From the oldest event of a chunk to its write.",
            buckets=_LATENCY_BUCKETS, registry=self._registry,
        )  # fmt: skip

    def watch(
        self, gauges: Mapping[str, tuple[str, Read]], counters: Mapping[str, tuple[str, Read]]
    ) -> None:
        """Report readings by name: its meaning, and the function that reads it now."""
        self._registry.register(
            _Readings(
                {f"sse_gateway_{name}": entry for name, entry in gauges.items()},
                {f"sse_gateway_{name}": entry for name, entry in counters.items()},
            )
        )

    def exposition(self) -> tuple[bytes, str]:
        """Return the document and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
