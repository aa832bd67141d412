"""JSON values: strict texts in, compact texts out, integers of any size exact on the way.

Source: RFC 8259. Never goes through a double where the text says an integer.
"""

import json
import math
import re

import orjson

from gateway.protocol.errors import InvalidField

DEPTH_LIMIT = 128
"""Levels of arrays and objects. orjson writes 254; a snapshot wraps a value in a few more."""

INTEGER_LIMIT_DIGITS = 4300
"""Python's own limit, as the time to convert grows with the square of the length."""

# Below 19 digits an integer fits 64 bits, which orjson keeps exact; beyond, it makes a double.
# A digit is found as a `0` of the translated text: 8 times as fast as a pattern on JSON.
_LONG_RUN = b"0" * 19
_DIGITS_AS_ZERO = bytes(ord("0") if chr(byte) in "0123456789" else byte for byte in range(256))
_LONG_DIGITS = re.compile(rb"([0-9]{18})[0-9]+")
_EXCERPT_BYTES = 100


def parse_json(data: bytes, field: str = "data") -> object:
    """Return the value of one JSON text in UTF-8; of equal names in an object the last counts.

    Raises InvalidField naming `field` when `data` is not such a text, holds a number beyond a
    double's range, an integer of more than INTEGER_LIMIT_DIGITS, a lone surrogate, or more than
    DEPTH_LIMIT levels.
    """
    if not has_long_digits(data):
        return parse_plain_json(data, field)
    try:
        # orjson judges grammar and depth, on a text of shorter numbers, as it calls an integer
        # above 1e308 infinite; the standard library, more lenient, then reads the true one.
        _check_depth(orjson.loads(_LONG_DIGITS.sub(rb"\1", data)), data, field)
        return json.loads(data.decode(), parse_float=_finite, parse_int=_exact)
    except (ValueError, RecursionError) as error:
        raise InvalidField(field, _excerpt(data), f"must be JSON: {error}") from None


def has_long_digits(data: bytes) -> bool:
    """Tell whether `data` has digits that orjson may not read exactly: 19 or more in a row."""
    return _LONG_RUN in data.translate(_DIGITS_AS_ZERO)


def parse_plain_json(data: bytes, field: str = "data") -> object:
    """Return the value of a JSON text without long digits; otherwise as parse_json."""
    try:
        return _check_depth(orjson.loads(data), data, field)
    except ValueError as error:
        raise InvalidField(field, _excerpt(data), f"must be JSON: {error}") from None


def dump_json(value: object, *, sort_keys: bool = False) -> bytes:
    """Return `value` as compact JSON; integers of any size exact, `orjson.Fragment` as it is.

    `value` is what parse_json returns, fragments allowed at any place. Keys keep their order,
    or are sorted by code point. NaN and infinity become null.
    Raises InvalidField when there is no JSON for it.
    """
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        # Mostly an integer beyond 64 bits: rare, so it costs a second pass only where it is.
        pass
    try:
        return orjson.dumps(_with_exact_integers(value), option=option)
    except (orjson.JSONEncodeError, ValueError, RecursionError) as error:
        raise InvalidField("value", type(value).__name__, f"must fit JSON: {error}") from None


def _with_exact_integers(value: object) -> object:
    if isinstance(value, dict):
        return {name: _with_exact_integers(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_exact_integers(element) for element in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    return value


def _check_depth(value: object, data: bytes, field: str) -> object:
    """Return `value` when it has at most DEPTH_LIMIT levels; raises InvalidField."""
    # Neither so short a text nor so few brackets can nest deeper: most events need no look inside.
    if (
        len(data) > 2 * DEPTH_LIMIT
        and data.count(b"[") + data.count(b"{") > DEPTH_LIMIT
        and _is_deeper(value, DEPTH_LIMIT)
    ):
        raise InvalidField(field, _excerpt(data), f"must nest at most {DEPTH_LIMIT} levels")
    return value


def _is_deeper(value: object, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        level = [
            member
            for container in level
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, (dict, list))
        ]
        if not level:
            return False
    return True


def _exact(text: str) -> int:
    if len(text.lstrip("-")) > INTEGER_LIMIT_DIGITS:
        raise ValueError(f"integer of more than {INTEGER_LIMIT_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("number beyond the range of a double")
    return number


def _excerpt(data: bytes) -> str:
    return data[:_EXCERPT_BYTES].decode(errors="replace")
