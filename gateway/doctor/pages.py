"""Checks of pages of history and of long-polls: parameters, keys, waits, collapsing."""

import asyncio
import random
import re
from collections.abc import Mapping

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.greeting import Greeting
from gateway.doctor.probe import Answer, Probe

_PARAMETERS = {"after": "x", "limit": "x", "wait": "x", "cursor": "x"}
"""Each with a value that the gateway refuses, and names in its refusal."""

_WAIT_TIMEOUTS = (
    "NGINX: proxy_read_timeout 60s;  (in the location of /history/)",
    "Varnish: .first_byte_timeout = 60s;  (in the backend)",
    "CDN: the origin's response timeout above history.wait_limit_seconds (docs/cdn.md)",
    "or a shorter history.wait_limit_seconds in the gateway",
)


async def check_parameters(probe: Probe, channel: str) -> list[Finding]:
    """Ask the same page with one bad value after another: whoever gets a page anyway was not heard.

    First with nothing in the cache, which shows what is lost on the way; then with the good page in
    it, which shows what its key lacks.
    """
    lost: set[str] = set()
    for name, answer in (await _ask_badly(probe, channel, _new_limit())).items():
        lost |= _unheard(name, answer)
    limit = _new_limit()
    good = await probe.get(f"/history/{channel}?{_query(limit, {})}", wait=1.0)
    unkeyed: set[str] = set()
    if good.status == 200:
        for name, answer in (await _ask_badly(probe, channel, limit)).items():
            unkeyed |= _unheard(name, answer) - lost
    found = []
    if lost:
        found.append(fault(
            "query", f"{_names(lost)} lost on the way to the gateway: clients get a page that they "
            "did not ask for, and ask for ever",
            "NGINX: proxy_pass http://gateway;  without a path of its own, and no rewrite … ?",
            "Varnish: no set req.url that cuts the query off",
            "CDN: all query strings are forwarded to the origin",
        ))  # fmt: skip
    if unkeyed:
        found.append(fault(
            "query", f"{_names(unkeyed)} missing from the cache's key: clients get the page of "
            "another request, and ask for ever",
            'NGINX: proxy_cache_key "$request_uri $coding";',
            "Varnish: hash_data(req.url);  with the whole query",
            "CDN: all query strings in the cache key",
        ))  # fmt: skip
    return found or [ok("query", "after, limit, wait and cursor each make a page of its own")]


def _new_limit() -> int:
    """Return a limit that nobody is likely to have asked by just now."""
    return random.randrange(100, 1000)


def _query(limit: int, changed: Mapping[str, str]) -> str:
    values = {"after": "1-0", "limit": str(limit), "wait": "1", "cursor": "0", **changed}
    return "&".join(f"{name}={value}" for name, value in values.items())


async def _ask_badly(probe: Probe, channel: str, limit: int) -> dict[str, Answer]:
    paths = [
        f"/history/{channel}?{_query(limit, {name: bad})}" for name, bad in _PARAMETERS.items()
    ]
    answers = await asyncio.gather(*[probe.get(path, wait=1.0) for path in paths])
    return dict(zip(_PARAMETERS, answers, strict=True))


def _unheard(name: str, answer: Answer) -> set[str]:
    """Return which parameters the gateway did not hear of when `name` was a bad one."""
    if answer.status in (200, 304, 404):
        return {name}
    needed = re.fullmatch(r"needs (\w+)", str(answer.document.get("rule", "")))
    return {needed[1]} if needed else set()


def _names(names: set[str]) -> str:
    ordered = [name for name in _PARAMETERS if name in names]
    return ", ".join(ordered) + (" is" if len(ordered) == 1 else " are")


async def check_collapsing(probe: Probe, channel: str) -> list[Finding]:
    """Ask for one page that nobody asked for before, many times at once."""
    path = f"/history/{channel}?limit={_new_limit()}"
    crowd = await asyncio.gather(*[probe.get(path) for _ in range(8)])
    if any(answer.status != 200 for answer in crowd):
        statuses = {answer.status for answer in crowd}
        text = f"pages answer {', '.join(map(str, statuses))}: their caching was not looked at"
        return [warning("collapsing", text, "name a channel that has events with --channel")]
    shared = ("HIT", "STALE", "UPDATING", "REVALIDATED")
    misses = sum(not any(word in one.cache for word in shared) for one in crowd if one.cache)
    if misses > 2:
        return [warning("collapsing", f"of 8 requests at once {misses} reach the gateway",
                        "NGINX: proxy_cache_lock on;",
                        "Varnish: no req.hash_ignore_busy, no return (pass) for "
                        "/history/")]  # fmt: skip
    if any(answer.cache for answer in crowd):
        return [ok("collapsing", "many requests at once are one to the gateway")]
    return []


async def check_long_poll(
    probe: Probe, greeting: Greeting, quiet: str, seconds: float
) -> list[Finding]:
    """Wait for an event that never comes: what comes in its place, when, and may it be kept."""
    wait = max(1, int(seconds))
    asked = f"/history/{quiet}?after={greeting.position}&limit=100"
    answer, lasted = await _poll(probe, f"{asked}&wait={wait}", wait)
    allowed = re.fullmatch(r"must be a whole number from 1 to (\d+)",
                           str(answer.document.get("rule", "")))  # fmt: skip
    if answer.status == 400 and allowed:
        wait = int(allowed[1])
        answer, lasted = await _poll(probe, f"{asked}&wait={wait}", wait)
    return [_judge_wait(answer, lasted, wait)]


async def _poll(probe: Probe, path: str, wait: float) -> tuple[Answer, float]:
    began = asyncio.get_running_loop().time()
    answer = await probe.get(path, wait=wait + 1.0, accept_encoding="identity")
    return answer, asyncio.get_running_loop().time() - began


def _judge_wait(answer: Answer, lasted: float, wait: int) -> Finding:
    if answer.status >= 500 and "reason" not in answer.document:
        return fault("long-poll", f"a long-poll of {wait} s was answered {answer.status} after "
                     f"{lasted:.1f} s: something on the way waits less long",
                     *_WAIT_TIMEOUTS)  # fmt: skip
    if answer.status != 200:
        text = f"a long-poll is answered {answer.status}: {answer.document.get('detail', '')}"
        return warning("long-poll", text, "see the gateway's answer, and its log")
    control = answer.headers.get("Cache-Control", "")
    life = re.search(r"max-age=(\d+)", control)
    if life is None or not 1 <= int(life[1]) <= 2 or "s-maxage" in control:
        return fault("long-poll", f"the empty answer of a long-poll says {control!r} in place of "
                     "a life of 1 to 2 s: those who wait are served one after the other, or get "
                     "old answers",
                     "NGINX: no add_header Cache-Control; no expires; for /history/",
                     "Varnish: no set resp.http.Cache-Control for /history/")  # fmt: skip
    return ok("long-poll", f"one of {wait} s is answered after {lasted:.0f} s, and may be kept for "
              f"{life[1]} s")  # fmt: skip
