"""Checks of snapshots and pages of history: codings, keys, ETags, caching, clocks."""

import asyncio
import random
import re
from email.utils import parsedate_to_datetime

import orjson

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.probe import Answer, Probe

_KEY = (
    'NGINX: proxy_cache_key "$request_uri $coding"; proxy_set_header Accept-Encoding $coding;  '
    "with the map of nginx/codings.conf",
    "Varnish: hash_data(req.http.X-Coding);  (nginx/varnish.vcl)",
    "CDN: Accept-Encoding, normalised, in the cache key",
)
_SKEW_SECONDS = 5.0


async def check_snapshots(probe: Probe, channel: str) -> list[Finding]:
    """Ask for a channel's snapshot in each coding, twice, and on condition."""
    path = f"/snapshots/{channel}"
    # A coding first that others could be given by mistake.
    answers = {
        coding: [await probe.get(path, accept_encoding=coding) for _ in range(2)]
        for coding in ("gzip", "br", "zstd", "identity")
    }
    first = answers["identity"][0]
    if first.status != 200:
        text = f"{path} answers {first.status}: name a channel that has a state (--channel)"
        return [warning("snapshot", text)]
    found = [_codings(answers), _vary(first), *await _tags(probe, path, first)]
    found += [_kept(answers), _clock(first), _age(answers), _cors(first)]
    return found


def _codings(answers: dict[str, list[Answer]]) -> Finding:
    for coding, pair in answers.items():
        for answer in pair:
            if answer.coding not in (coding, "identity"):
                return fault("cache-key", f"whoever asks for {coding} gets {answer.coding}: the "
                             "cache mixes codings up, and readers get bytes that they cannot read",
                             *_KEY)  # fmt: skip
    missing = [coding for coding, pair in answers.items() if pair[0].coding != coding]
    if missing:
        return warning("compression", f"snapshots do not come in {', '.join(missing)}",
                       "pass Accept-Encoding on to the gateway; NGINX: proxy_set_header "
                       "Accept-Encoding $coding;")  # fmt: skip
    return ok("compression", "snapshots come in br, zstd, gzip and uncompressed, none mixed up")


def _vary(answer: Answer) -> Finding:
    if "accept-encoding" in answer.headers.get("Vary", "").lower():
        return ok("vary", "Vary names Accept-Encoding")
    return fault("vary", "snapshots lack Vary: Accept-Encoding: a cache on the way to a reader may "
                 "mix codings up", "NGINX: no proxy_hide_header Vary;")  # fmt: skip


async def _tags(probe: Probe, path: str, answer: Answer) -> list[Finding]:
    tag = answer.headers.get("ETag")
    if tag is None:
        return [fault("etag", "snapshots come without an ETag, so every reload is a whole one",
                      "NGINX: no proxy_hide_header ETag; no sub_filter, no ssi")]  # fmt: skip
    if tag.startswith("W/"):
        return [fault("etag", "the ETag was made weak: something on the way rewrites snapshots",
                      "NGINX: gzip off;  (the gateway compresses)")]  # fmt: skip
    again = await probe.get(path, accept_encoding="identity", if_none_match=tag)
    if again.status == 304 or again.headers.get("ETag") != tag:
        return [ok("etag", "ETags are strong, and what a reader has is not sent again")]
    return [fault("etag", "If-None-Match is not answered with 304",
                  "pass If-None-Match on; NGINX: proxy_cache_revalidate on;")]  # fmt: skip


def _kept(answers: dict[str, list[Answer]]) -> Finding:
    seconds = [answers[coding][1] for coding in answers]
    if any(answer.kept for answer in seconds):
        return ok("cached", "snapshots come out of a cache")
    if not any(answer.cache for answer in seconds):
        return warning("cached", "nothing says that snapshots are cached (X-Cache, Age)",
                       "NGINX: proxy_cache gateway; add_header X-Cache $upstream_cache_status;",
                       "CDN: a rule that makes /snapshots/ and /history/ cacheable")  # fmt: skip
    return fault("cached", "snapshots are asked of the gateway every time",
                 "NGINX: no proxy_ignore_headers Cache-Control without proxy_cache_valid; no "
                 "proxy_no_cache", "the setting edge_max_age_seconds above 0")  # fmt: skip


def _clock(answer: Answer) -> Finding:
    try:
        said = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return fault("clock", "answers have no Date, from which caches count their age",
                     "NGINX: no proxy_hide_header Date;")  # fmt: skip
    off = said + answer.age - answer.at
    if abs(off) <= _SKEW_SECONDS:
        return ok("clock", "its clock agrees with this machine's")
    return fault("clock", f"its clock is {off:+.0f} s off this machine's: ages are wrong, "
                 "and slices end at another time", "run NTP on both")  # fmt: skip


def _age(answers: dict[str, list[Answer]]) -> Finding:
    for pair in answers.values():
        for answer in pair:
            life = _life(answer.headers.get("Cache-Control", ""))
            age = answer.age
            if life is None:
                return fault("cache-control", "Cache-Control of snapshots has no s-maxage: the "
                             "gateway's was replaced",
                             "NGINX: no expires; no add_header Cache-Control;")  # fmt: skip
            if age > life:
                return fault("stale", f"a snapshot is {age} s old, and may be {life} s at most",
                             "NGINX: no proxy_cache_use_stale; no proxy_cache_valid")  # fmt: skip
    return ok("stale", "nothing is older than it may be")


def _life(control: str) -> int | None:
    found = {name: int(n) for name, n in re.findall(r"([a-z-]+)=(\d+)", control)}
    if "s-maxage" not in found:
        return None
    stale = max(found.get("stale-while-revalidate", 0), found.get("stale-if-error", 0))
    return found["s-maxage"] + stale


def _cors(answer: Answer) -> Finding:
    if answer.headers.get("Access-Control-Allow-Origin") == "*":
        return ok("cors-snapshots", "pages of any site may read snapshots")
    return fault("cors-snapshots", "Access-Control-Allow-Origin of snapshots is not *",
                 "NGINX: no proxy_hide_header Access-Control-Allow-Origin;")  # fmt: skip


async def check_pages(probe: Probe, channel: str) -> list[Finding]:
    """Ask for pages that must differ, one that must be refused, and one many times at once."""
    path = f"/history/{channel}"
    one, two = await probe.get(f"{path}?limit=1"), await probe.get(f"{path}?limit=2")
    if one.status != 200 or two.status != 200:
        return [warning("history", f"{path} answers {one.status}: its caching was not looked at")]
    found = []
    refused = await probe.get(f"{path}?limit=1&doctor={random.randrange(10**9)}")
    if refused.status == 200 or (_events(one) == 2 and _events(two) == 2):
        found.append(fault(
            "query",
            "parameters are dropped: different pages come out the same, and a long-poll would ask "
            "for ever",
            "NGINX: proxy_cache_key with $request_uri or $args; proxy_pass without a path",
            "CDN: all query parameters in the cache key",
        ))  # fmt: skip
    elif _events(one) == 1 and one.body == two.body and _events(two) < 2:
        found.append(ok("query", "unknown parameters are refused (the channel has one event)"))
    else:
        found.append(ok("query", "each page has an entry of its own"))
    limit = random.randrange(3, 1000)
    crowd = await asyncio.gather(*[probe.get(f"{path}?limit={limit}") for _ in range(8)])
    shared = ("HIT", "STALE", "UPDATING", "REVALIDATED")
    misses = sum(not any(word in one.cache for word in shared) for one in crowd if one.cache)
    if misses > 2:
        found.append(warning("collapsing", f"of 8 requests at once {misses} reach the gateway",
                             "NGINX: proxy_cache_lock on;"))  # fmt: skip
    elif any(answer.cache for answer in crowd):
        found.append(ok("collapsing", "many requests at once are one to the gateway"))
    return found


def _events(answer: Answer) -> int:
    try:
        return len(orjson.loads(answer.body)["events"])
    except (ValueError, KeyError, TypeError):
        return -1
