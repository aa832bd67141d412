"""Settings of the property tests: a busy machine is no failure."""

from hypothesis import settings

# A deadline per example fails at random where the processor is shared.
settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")
