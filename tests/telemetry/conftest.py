"""Fixtures of the tests of telemetry: those of the HTTP interface."""

from tests.web.conftest import client, session, start

__all__ = ["client", "session", "start"]
