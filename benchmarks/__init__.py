"""Measurements of the gateway; run `python -m benchmarks`."""
