"""Types of the compiled loop in `_writing.c`."""

from array import array

def write_all(fds: array[int], start: int, stop: int, data: bytes, /) -> list[tuple[int, int]]: ...
