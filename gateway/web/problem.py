"""Errors as `application/problem+json` (RFC 9457): what was wrong, where, and the rule."""

from collections.abc import Mapping

import orjson
from aiohttp import web

from gateway.protocol import errors
from gateway.protocol.cache_control import NO_STORE

_EXCERPT = 200


def problem(
    status: int,
    title: str,
    detail: str,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return a problem document; no cache keeps it unless `headers` say so."""
    document: dict[str, object] = {
        "type": "about:blank", "title": title, "status": status, "detail": detail, **(extra or {}),
    }  # fmt: skip
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        content_type="application/problem+json",
        headers={"Cache-Control": NO_STORE, **(headers or {})},
    )


def problem_of(error: errors.GatewayError, *, invalid: int = 400) -> web.Response:
    """Return the problem that an error is to the caller; `invalid` is a bad field's status."""
    match error:
        case errors.TooLarge():
            return problem(413, "Too large", str(error), _field(error))
        case errors.LimitExceeded():
            return problem(422, "Over a limit", str(error), _field(error))
        case errors.InvalidField():
            return problem(invalid, "Invalid value", str(error), _field(error))
        case errors.InvalidBatch():
            lines = [{"line": one.line, **_field(one)} for one in error.errors]
            detail = f"nothing was stored: {error}, the first in line {error.errors[0].line}"
            return problem(422, "Invalid batch", detail, {"errors": lines})
        case errors.IdempotencyConflict():
            extra: dict[str, object] = {"field": "Idempotency-Key", "value": error.key}
            if error.line is not None:
                extra["line"] = error.line
            return problem(409, "Idempotency key reused", str(error), extra)
        case errors.PositionMismatch():
            current = str(error.current) if error.current else None
            extra = {"field": "If-Match", "value": error.expected, "current": current}
            return problem(412, "Precondition failed", str(error), extra)
        case errors.ProtectedNamespace():
            return problem(
                403, "Protected", str(error), headers={"Cache-Control": "private, no-store"}
            )
        case errors.UnknownChannel():
            return problem(404, "Unknown channel", str(error))
        case errors.OutcomeUnknown():
            detail = (
                f"{error}: it may have been stored or not; send it again with the same "
                "Idempotency-Key to be sure of one"
            )
            return problem(503, "Outcome unknown", detail, {"outcome": "unknown"}, _RETRY)
        case errors.StoreUnavailable() | errors.StoreBusy() | errors.MergeContention():
            return problem(503, "Store unavailable", str(error), headers=_RETRY)
        case _:
            return problem(500, "Internal error", str(error))


_RETRY = {"Retry-After": "1"}


def _field(error: errors.InvalidField) -> dict[str, object]:
    value = error.value
    exact = isinstance(value, int) and abs(value) < 2**53  # Beyond, readers of JSON round.
    if not (value is None or exact or isinstance(value, float)):
        value = excerpt(str(value))
    return {"field": error.field, "value": value, "rule": error.rule}


def excerpt(text: str) -> str:
    """Return the text's beginning, fit for JSON: header bytes that are no UTF-8 are spelt out."""
    return text[:_EXCERPT].encode(errors="backslashreplace").decode()
