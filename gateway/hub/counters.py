"""What the hub did since it began, for the metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class HubCounters:
    """Numbers that only rise. `lags` counts how often a subscriber fell behind."""

    deliveries: int = 0
    delivered_bytes: int = 0
    passes: int = 0
    lags: int = 0
    gaps: int = 0
    conflations: int = 0
    timeouts: int = 0
