"""A running gateway's own counts, read over HTTP; it knows no other server's."""

import re
import urllib.request

from benchmarks.peers.base import Server

PREFIX = "sse_gateway_"
TIMEOUT_SECONDS = 10.0


def read_metric(server: Server, name: str) -> float:
    """Return one metric, given without the common prefix.

    Raises RuntimeError when the gateway has no such metric.
    """
    url = f"http://{server.host}:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{PREFIX}{re.escape(name)} ([0-9.e+]+)$", text, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the gateway has no metric {PREFIX}{name}")
    return float(found[1])
