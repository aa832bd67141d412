"""One chunk written to many sockets in a row; decides nothing about what came short.

`write_all` is the loop of `_writing.c` where that was built (COMPILED), else the same in Python.
"""

import errno
import os
from array import array
from typing import Final

__all__ = ["COMPILED", "write_all", "write_all_in_python"]


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
    size, write = len(data), os.write
    for index, fd in enumerate(fds[start:stop], start):
        if fd < 0:
            continue
        # EINTR is not among what can happen: Python tries again by itself (PEP 475).
        try:
            taken = write(fd, data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            taken = -(error.errno or errno.EIO)
        if taken != size:
            shorts.append((index, taken))
    return shorts


try:
    from gateway.hub._writing import write_all
except ImportError:
    write_all = write_all_in_python

COMPILED: Final = write_all is not write_all_in_python
