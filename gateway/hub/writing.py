"""One chunk written to many sockets in a row; decides nothing about what came short.

`write_all` is the loop of `_writing.c` where that was built (COMPILED), else the same in Python.
"""

import errno
import fcntl
import os
import sys
import termios
from array import array
from typing import Final

__all__ = ["COMPILED", "count_unacknowledged", "write_all", "write_all_in_python", "write_one"]


def write_one(fd: int, data: bytes | memoryview) -> int:
    """Write `data` to a non-blocking socket; return the bytes taken, 0 by a full one, or -errno."""
    # EINTR is not among what can happen: Python tries again by itself (PEP 475).
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        return -(error.errno or errno.EIO)


def count_unacknowledged(fd: int) -> int:
    """Return the bytes in a socket's send buffer that its peer has not got yet; 0 if unknown.

    Source: tcp(7), SIOCOUTQ.
    """
    try:
        raw = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # ValueError: a socket that was closed has -1.
        return 0
    return int.from_bytes(raw, sys.byteorder)


def write_all_in_python(
    fds: "array[int]", start: int, stop: int, data: bytes, /
) -> list[tuple[int, int]]:
    """Write `data` to each of the non-blocking sockets `fds[start:stop]`; typecode 'i'.

    Returns (index, outcome) of those that did not take all of it, in order: the bytes taken,
    0 by a full one, or -errno. Negative fds are passed over.

    Raises ValueError, with nothing written, for another typecode or a range outside `fds`.
    """
    if fds.typecode != "i":
        raise ValueError(f"fds must be an array of typecode 'i', not '{fds.typecode}'")
    if not 0 <= start <= stop <= len(fds):
        raise ValueError(f"start {start} and stop {stop} must be a range of {len(fds)} fds")
    shorts: list[tuple[int, int]] = []
    size = len(data)
    for index, fd in enumerate(fds[start:stop], start):
        if fd < 0:
            continue
        taken = write_one(fd, data)
        if taken != size:
            shorts.append((index, taken))
    return shorts


try:
    from gateway.hub._writing import write_all
except ImportError:
    write_all = write_all_in_python

COMPILED: Final = write_all is not write_all_in_python
