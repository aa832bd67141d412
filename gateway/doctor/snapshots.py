"""Checks of snapshots: codings, keys, ETags, caching, clocks."""

import secrets

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.life import may_be_kept, read_life
from gateway.doctor.probe import Answer, Probe

_KEY = (
    'NGINX: proxy_cache_key "$request_uri $coding"; proxy_set_header Accept-Encoding $coding;  '
    "with the map of nginx/codings.conf",
    "Varnish: hash_data(req.http.X-Coding);  (nginx/varnish.vcl)",
    "CDN: Accept-Encoding, normalised, in the cache key",
)
_SKEW_SECONDS = 5.0
_CODINGS = ("gzip", "br", "zstd", "identity")
"""A coding first that others could be given by mistake."""


async def check_snapshots(probe: Probe, channel: str) -> list[Finding]:
    """Ask for a channel's snapshot in each coding, twice, and on condition."""
    path = f"/snapshots/{channel}"
    answers = {
        coding: [await probe.get(path, accept_encoding=coding) for _ in range(2)]
        for coding in _CODINGS
    }
    first = answers["identity"][0]
    if first.status != 200:
        text = f"{path} answers {first.status}: nothing of snapshots was looked at"
        return [warning("snapshot", text, "name a channel that has a state with --channel")]
    # At an address that nobody has asked at yet: no cache has it in one of the codings.
    own = f"{path}?min=1-{secrets.randbelow(10**9)}"
    anew = {coding: await probe.get(own, accept_encoding=coding) for coding in _CODINGS}
    found = [_codings(answers, anew), _vary(first), await _tags(probe, path, first)]
    if may_be_kept(first):
        found.append(await _kept(probe, path, answers))
    return [*found, _clock(first), _age(answers), _cors(first)]


def _codings(answers: dict[str, list[Answer]], anew: dict[str, Answer]) -> Finding:
    for coding, pair in answers.items():
        for answer in (*pair, anew[coding]):
            if answer.coding not in (coding, "identity"):
                return fault("cache-key", f"whoever asks for {coding} gets {answer.coding}: the "
                             "cache mixes codings up, and readers get bytes that they cannot read",
                             *_KEY)  # fmt: skip
    missing = [coding for coding, answer in anew.items() if answer.coding != coding]
    if missing:
        return warning("compression", f"snapshots do not come in {', '.join(missing)}",
                       "NGINX: proxy_set_header Accept-Encoding $coding;",
                       "Varnish: set bereq.http.Accept-Encoding = bereq.http.X-Coding;  (by "
                       "itself it asks for gzip alone)")  # fmt: skip
    return ok("compression", "snapshots come in br, zstd, gzip and uncompressed, none mixed up")


def _vary(answer: Answer) -> Finding:
    if "accept-encoding" in answer.headers.get("Vary", "").lower():
        return ok("vary", "Vary names Accept-Encoding")
    return fault("vary", "snapshots lack Vary: Accept-Encoding: a cache on the way to a reader may "
                 "mix codings up", "NGINX: no proxy_hide_header Vary;",
                 "Varnish: no unset resp.http.Vary;")  # fmt: skip


async def _tags(probe: Probe, path: str, answer: Answer) -> Finding:
    tag = answer.headers.get("ETag")
    if tag is None:
        return fault("etag", "snapshots come without an ETag, so every reload is a whole one",
                     "NGINX: no proxy_hide_header ETag; no sub_filter, no ssi",
                     "Varnish: no unset resp.http.ETag;")  # fmt: skip
    if tag.startswith("W/"):
        return fault("etag", "the ETag was made weak: something on the way rewrites snapshots",
                     "NGINX: gzip off;  (the gateway compresses)",
                     "Varnish: no beresp.do_gzip, no beresp.do_gunzip")  # fmt: skip
    again = await probe.get(path, accept_encoding="identity", if_none_match=tag)
    if again.status == 304 or again.headers.get("ETag") != tag:
        return ok("etag", "ETags are strong, and what a reader has is not sent again")
    if not may_be_kept(answer):
        return warning("etag", "If-None-Match is not answered with 304, for nothing may be kept",
                       "the setting edge_max_age_seconds above 0")  # fmt: skip
    return fault("etag", "If-None-Match is not answered with 304: every reload is a whole one",
                 "NGINX: no add_header ETag; with proxy_hide_header ETag;",
                 "Varnish: no unset req.http.If-None-Match;")  # fmt: skip


async def _kept(probe: Probe, path: str, answers: dict[str, list[Answer]]) -> Finding:
    # Short lives end between two questions; a cache that is there shows itself sooner or later.
    seconds = [pair[1] for pair in answers.values()]
    seconds += [await probe.get(path, accept_encoding="identity") for _ in range(4)]
    if any(answer.kept for answer in seconds):
        return ok("cached", "snapshots come out of a cache")
    if not any(answer.cache for answer in seconds):
        return warning("cached", "nothing says that snapshots are cached (X-Cache, Age)",
                       "NGINX: proxy_cache gateway; add_header X-Cache $upstream_cache_status;",
                       "Varnish: set resp.http.X-Cache in vcl_deliver  (nginx/varnish.vcl)",
                       "CDN: a rule that makes /snapshots/ and /history/ cacheable")  # fmt: skip
    return fault("cached", "snapshots are asked of the gateway every time",
                 "NGINX: no proxy_ignore_headers Cache-Control; no proxy_no_cache, no "
                 "proxy_cache_bypass for readers",
                 "Varnish: no return (pass) for /snapshots/; unset req.http.Cookie;")  # fmt: skip


def _clock(answer: Answer) -> Finding:
    if answer.date is None:
        return fault("clock", "answers have no Date, from which caches count their age",
                     "NGINX: no proxy_hide_header Date;",
                     "Varnish: no unset resp.http.Date;")  # fmt: skip
    off = answer.date - answer.at
    if abs(off) <= _SKEW_SECONDS:
        return ok("clock", "its clock agrees with this machine's")
    return fault("clock", f"its clock is {off:+.0f} s off this machine's: ages are wrong, "
                 "and slices end at another time", "run NTP on both",
                 "Varnish: no set resp.http.Date")  # fmt: skip


def _age(answers: dict[str, list[Answer]]) -> Finding:
    for pair in answers.values():
        for answer in pair:
            life = read_life(answer)
            if life is None:
                return fault("cache-control", "Cache-Control of snapshots is not the gateway's: "
                             f"{answer.headers.get('Cache-Control')!r}",
                             "NGINX: no expires; no add_header Cache-Control;",
                             "Varnish: no set resp.http.Cache-Control")  # fmt: skip
            if answer.age > life.edge_limit_seconds:
                return fault("stale", f"a snapshot is {answer.age} s old, and may be "
                             f"{life.edge_limit_seconds} s at most",
                             "NGINX: no proxy_cache_use_stale; no proxy_cache_valid",
                             "Varnish: no set beresp.grace or beresp.ttl beyond what the headers "
                             "say")  # fmt: skip
    return ok("stale", "nothing is older than it may be")


def _cors(answer: Answer) -> Finding:
    if answer.headers.get("Access-Control-Allow-Origin") == "*":
        return ok("cors-snapshots", "pages of any site may read snapshots")
    return fault("cors-snapshots", "Access-Control-Allow-Origin of snapshots is not *",
                 "NGINX: no proxy_hide_header Access-Control-Allow-Origin;",
                 "Varnish: no unset resp.http.Access-Control-Allow-Origin;")  # fmt: skip
