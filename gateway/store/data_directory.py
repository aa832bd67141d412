"""The data directory of the embedded server: made, locked, and the files in it kept in order.

It starts and ends no process.
"""

import fcntl
import logging
import os
import stat
import tempfile
from pathlib import Path

from gateway.protocol.errors import GatewayError

_log = logging.getLogger(__name__)

LOCK_NAME = "gateway.lock"
SOCKET_NAME = "store.sock"
LOG_NAME = "store.log"
SHORT_DIRECTORY_PREFIX = "sse-gateway-"

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, one of them the NUL that ends the path.
SOCKET_PATH_LIMIT_BYTES = 103

# The log is kept for people: about 10,000 lines, and the same again as `store.log.old`.
LOG_LIMIT_BYTES = 1_048_576
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 8_192


class EmbeddedServerError(GatewayError):
    """The embedded server cannot run, or no longer runs: what it is about, and why in words."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")
        self.subject = subject
        self.reason = reason


class DataDirectoryInUse(EmbeddedServerError):
    """Another gateway holds the data directory; `holder` is its process id as it wrote it."""

    def __init__(self, data_dir: Path, holder: str) -> None:
        super().__init__(
            f"data_dir = {data_dir}",
            f"another gateway (process {holder}) uses this directory: "
            "stop it, or give this one a directory of its own",
        )
        self.data_dir = data_dir
        self.holder = holder


class DataDirectoryLock:
    """An flock(2) on a file in the directory; the kernel drops it when its holder dies.

    The descriptor is not inheritable, so a server that outlives its gateway does not keep the lock.
    The file is never removed: a lock on a removed file would exclude nobody.
    """

    def __init__(self, data_dir: Path) -> None:
        """Take the lock at once, or raise DataDirectoryInUse."""
        path = data_dir / LOCK_NAME
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(data_dir, path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            self.release()
            raise DataDirectoryInUse(data_dir, holder or "unknown") from error
        except OSError as error:
            self.release()
            raise _unusable(data_dir, path, error) from error

    def release(self) -> None:
        """Let the next gateway in."""
        os.close(self._descriptor)


def _unusable(data_dir: Path, path: Path, error: OSError) -> EmbeddedServerError:
    return EmbeddedServerError(
        f"data_dir = {data_dir}",
        f"{path} cannot be locked ({error.strerror}): "
        "the gateway must be able to write and lock files in it",
    )


def prepare_directory(data_dir: Path) -> Path:
    """Create the directory for this user alone, and return its absolute path."""
    rule = "it must be a directory that the gateway may create, read and write"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir = data_dir.resolve(strict=True)
        mode = data_dir.stat().st_mode
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise EmbeddedServerError(f"data_dir = {data_dir}", f"{why}: {rule}") from error
    effective = os.access in os.supports_effective_ids
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
        raise EmbeddedServerError(f"data_dir = {data_dir}", f"Permission denied: {rule}")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        _log.warning("data_dir = %s: other users may write to it; 0700 is safer", data_dir)
    return data_dir


def place_socket(data_dir: Path) -> Path:
    """Return where a new server's socket goes: the data directory, or else a short private one.

    A path too long for the kernel moves to a new directory (0700) under the temporary directory,
    and a symbolic link in the data directory records where: a later gateway finds it by that.
    """
    remove_socket(data_dir)
    recorded = data_dir / SOCKET_NAME
    if len(os.fsencode(recorded)) <= SOCKET_PATH_LIMIT_BYTES:
        return recorded
    room = len(f"/{SHORT_DIRECTORY_PREFIX}12345678/{SOCKET_NAME}")
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) + room <= SOCKET_PATH_LIMIT_BYTES and os.access(base, os.W_OK):
            socket = Path(tempfile.mkdtemp(prefix=SHORT_DIRECTORY_PREFIX, dir=base)) / SOCKET_NAME
            recorded.symlink_to(socket)
            return socket
    raise EmbeddedServerError(
        f"data_dir = {data_dir}",
        f"its socket's path is over {SOCKET_PATH_LIMIT_BYTES} bytes, and there is no short "
        "directory for it: give a shorter data_dir, or a shorter TMPDIR",
    )


def recorded_socket(data_dir: Path) -> Path:
    """Return where the socket of a server that was started earlier is, if there is one."""
    recorded = data_dir / SOCKET_NAME
    return Path(os.readlink(recorded)) if recorded.is_symlink() else recorded


def remove_socket(data_dir: Path) -> None:
    """Remove the socket, and the short directory that was made for it."""
    socket = recorded_socket(data_dir)
    (data_dir / SOCKET_NAME).unlink(missing_ok=True)
    if socket.parent != data_dir and socket.parent.name.startswith(SHORT_DIRECTORY_PREFIX):
        try:
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()
        except OSError as error:
            _log.debug("%s stays: %s", socket.parent, error)


def begin_log(log: Path) -> int:
    """Put a log that has grown large aside; return where the new server's lines begin."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.old"))
    log.touch(mode=0o600)
    return log.stat().st_size


def remove_unfinished_rewrites(data_dir: Path) -> None:
    """Remove what killed servers left half written: as large as the data, and never read again."""
    for left in data_dir.glob("temp-rewriteaof-*.aof"):
        left.unlink(missing_ok=True)


def read_log_tail(log: Path, offset_bytes: int) -> list[str]:
    """Return the last lines of the log from the offset on; none when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(offset_bytes, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read(LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-LOG_TAIL_LINES:]
