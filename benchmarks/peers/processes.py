"""Starting and ending the processes of peers; what they serve is their own matter."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.open_files import raise_limit

HOST = "127.0.0.1"
START_SECONDS = 20.0
END_SECONDS = 20.0  # Thousands of open streams take some servers a while to let go.


def free_port() -> int:
    """Return a TCP port of loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def pinned(core: int) -> list[str]:
    """Return the command prefix that keeps a process on one core, where that can be done."""
    return ["taskset", "-c", str(core)] if shutil.which("taskset") else []


@contextmanager
def serving(
    command: Sequence[str], core: int, port: int, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on one core until the block ends; it answers on `port` when this yields.

    Raises RuntimeError, with what the server said, when it ends or is silent instead.
    """
    raise_limit()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*pinned(core), *command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            if not _answers(process, port):
                said.seek(0)
                text = said.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{' '.join(command)} did not start: {text}")
            yield process
        finally:
            _end(process)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
