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
ReadMany = Callable[[], Mapping[str, float]]


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


class _LabelledReadings(Collector):
    def __init__(self, name: str, text: str, label: str, read: ReadMany) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self._read().items():
            family.add_metric([value], number)
        yield family


class Metrics:
    """One registry of this process; its few labels are bounded, so its size never grows."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.publish_seconds = Histogram(
            "sse_gateway_publish_seconds", "From a publish request to its answer.",
            buckets=_LATENCY_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.purge_seconds = Histogram(
            "sse_gateway_purge_seconds", "Of a call to purge caches that worked.",
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

    def watch_labelled(self, name: str, text: str, label: str, read: ReadMany) -> None:
        """Report counters that are told apart by one label, of few values."""
        self._registry.register(_LabelledReadings(f"sse_gateway_{name}", text, label, read))

    def exposition(self) -> tuple[bytes, str]:
        """Return the document and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
