"""Tests that wait for the same moments, begun at once: each passes or fails by itself."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

Begun = Mapping[str, "asyncio.Task[None]"]


def together(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Have a test run at the same time as all others of its module that are marked so.

    It is for those that mostly wait, as for slices to begin and to end. Its arguments are what
    the module's fixture `begun` gives to `begin`; what it counts, it must be alone to change. No
    other test may stand in the module: while that ran on a loop of its own, these would not.
    """

    @functools.wraps(test)
    async def ended(begun: Begun) -> None:
        await begun[test.__name__]

    own = inspect.Signature([inspect.Parameter("begun", inspect.Parameter.KEYWORD_ONLY)])
    ended.__signature__ = own  # type: ignore[attr-defined]
    return ended


@asynccontextmanager
async def begin(request: pytest.FixtureRequest, *given: Any) -> AsyncIterator[Begun]:
    """Begin all tests of the fixture's module that are to be run."""
    tests = [
        item.function.__wrapped__
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.getparent(pytest.Module) is request.node
    ]
    tasks = {test.__name__: asyncio.ensure_future(test(*given)) for test in tests}
    try:
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
