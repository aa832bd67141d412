"""The types of single settings: what each may be; which settings there are is not said here."""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gateway.protocol.channel import check_channel
from gateway.protocol.errors import InvalidField

_REDIS_SCHEMES = (
    "redis://", "rediss://", "unix://",
    "redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://",
)  # fmt: skip

# The store's scripts count in doubles, and no setting needs more.
_LARGEST = 2**53 - 1


def _refuse_boolean(value: object) -> object:
    # To Python `true` is the number 1; to whoever wrote it, it is not.
    if isinstance(value, bool):
        raise PydanticCustomError("rule", "must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_refuse_boolean)]
Number = Annotated[float, BeforeValidator(_refuse_boolean)]
Count = Annotated[Whole, Field(ge=1, le=_LARGEST)]
CountOrZero = Annotated[Whole, Field(ge=0, le=_LARGEST)]
Seconds = Annotated[Number, Field(gt=0, le=1e9, allow_inf_nan=False)]
# The kernel's probes count whole seconds, up to 32767.
VanishedSeconds = Annotated[Number, Field(ge=1, le=3600, allow_inf_nan=False)]
WholeSeconds = Annotated[Whole, Field(ge=1, le=10**9)]
WholeSecondsOrZero = Annotated[Whole, Field(ge=0, le=10**9)]
# Up to its last two seconds a slice is read as it comes: shorter ones would be little else.
SliceSeconds = Annotated[Whole, Field(ge=5, le=10**9)]


def default_data_dir() -> Path:
    """Return `$XDG_STATE_HOME/sse-gateway`, or its usual place under the home directory.

    Source: XDG Base Directory Specification (a relative path there is to be ignored).
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "sse-gateway"


def _expand_data_dir(value: object) -> object:
    if value == "":
        return default_data_dir()
    return Path(value).expanduser() if isinstance(value, str | Path) else value


def _check_redis(value: str) -> str:
    if value != "embedded" and not value.startswith(_REDIS_SCHEMES):
        raise PydanticCustomError("rule", "must be embedded or a URL such as redis://host:6379/0")
    return value


def _check_purge_url(value: str) -> str:
    try:
        url = urlsplit(value)
        usable = not value or (url.scheme in ("http", "https") and bool(url.hostname))
        usable = usable and url.port != 0
    except ValueError:  # A port that is none, for instance.
        usable = False
    if not usable:
        raise PydanticCustomError("rule", "must be a URL such as http://127.0.0.1:8081")
    return value.rstrip("/")


def _check_token(value: str) -> str:
    if not all("!" <= character <= "~" for character in value):
        raise PydanticCustomError("rule", "must be ASCII without blanks or line ends")
    return value


def _check_workers(value: int) -> int:
    if value != 1:
        raise PydanticCustomError("rule", "must be 1; this version runs one worker")
    return value


def _check_base_path(value: str) -> str:
    if not value:
        return value
    try:
        check_channel(value.removeprefix("/"))
    except InvalidField:
        value = ""
    if not value.startswith("/"):
        raise PydanticCustomError("rule", "must be empty, or start with / and not end with it")
    return value


RedisUrl = Annotated[str, AfterValidator(_check_redis)]
PurgeUrl = Annotated[str, AfterValidator(_check_purge_url)]
Token = Annotated[str, AfterValidator(_check_token)]
DataDir = Annotated[Path, BeforeValidator(_expand_data_dir)]
Workers = Annotated[Whole, AfterValidator(_check_workers)]
BasePath = Annotated[str, AfterValidator(_check_base_path)]
