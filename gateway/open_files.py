"""How many files this process may open, and how many streams fit in; opens none itself."""

import logging

_log = logging.getLogger(__name__)

RESERVE_FILES = 512
"""Kept for what is not a stream: Redis, publishers, snapshots, and streams about to be told to
come back later. From about 10,000 files on, one in twenty."""

_OPEN_MAX = 10240
"""What may be asked for where the hard limit is called infinite: setrlimit(2) of macOS."""


def raise_limit() -> int | None:
    """Raise the soft limit of open files to the hard one; return the soft limit then in force.

    None where the system knows no such limit, or sets none.
    """
    try:
        import resource
    except ImportError:  # Not POSIX.
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    wanted = _OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.debug("the limit of open files stays at %d instead of %d: %s", soft, wanted, error)
        return soft
    _log.debug("the limit of open files was raised from %d to %d", soft, wanted)
    return wanted


def bound_streams(wanted: int, files_limit: int | None) -> int:
    """Return how many of `wanted` streams fit in the limit of open files; None is no limit.

    A reserve is kept for everything else; never more than half of the files.
    """
    if files_limit is None:
        return wanted
    reserve = min(max(RESERVE_FILES, files_limit // 20), files_limit // 2)
    return min(wanted, files_limit - reserve)
