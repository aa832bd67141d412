"""Fixtures of the tests of snapshots: those of the HTTP interface."""

from tests.web.conftest import client, session, start, transport

__all__ = ["client", "session", "start", "transport"]
