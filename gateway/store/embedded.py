"""A real Valkey server as the gateway's child: started, adopted, watched and stopped here.

It knows nothing of what is stored; the store connects to `EmbeddedServer.url` like to any Redis.
"""

import asyncio
import logging
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.store.data_directory import (
    LOG_NAME,
    DataDirectoryInUse,
    DataDirectoryLock,
    EmbeddedServerError,
    begin_log,
    place_socket,
    prepare_directory,
    read_log_tail,
    recorded_socket,
    remove_socket,
    remove_unfinished_rewrites,
)
from gateway.store.server_process import (
    LOOK_SECONDS,
    describe_status,
    end_processes,
    find_binary,
    find_servers,
    has_ended,
)

__all__ = ["DataDirectoryInUse", "EmbeddedServer", "EmbeddedServerError", "find_binary"]

_log = logging.getLogger(__name__)

# What the server runs with; a left-over server that runs with anything else is not adopted.
SERVER_SETTINGS: Mapping[str, str] = {
    "port": "0",  # No TCP: whoever may open the socket's file may use the store, nobody else.
    "unixsocketperm": "600",
    "appendonly": "yes",
    "appendfsync": "everysec",  # A power cut costs two seconds at most; a killed process nothing.
    "save": "",  # The append-only file holds everything; RDB files would be a second, older truth.
    "maxmemory-policy": "noeviction",  # Evicted keys would be silent holes.
}

# The server's environment: what a program needs to run, and none of the gateway's secrets.
INHERITED = ("PATH", "HOME", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH")

# A healthy server answers within milliseconds; one that needs longer is busy or hung.
ANSWER_TIMEOUT_SECONDS = 2.0

# The wait between two looks at a running server. Its clients see a lost connection at once; this
# only bounds how late the gateway says why.
WATCH_SECONDS = 0.2

# A warning (`#`) about the append-only file or the RDB file that it starts with.
BROKEN_DATA = re.compile(r"# .*(append only file|\bAOF\b|\brdb\b)", re.IGNORECASE)
REMEDY = (
    "\nThe append-only file in {directory} must be readable and whole: restore the data directory "
    "from a copy, or cut the file that the log names after its last whole command "
    "(valkey-check-aof --fix FILE), or move the data directory away to start empty."
)


class EmbeddedServer:
    """A Valkey server on a unix socket in `data_dir`, for as long as the context is open.

    Entering creates the directory (0700), takes its lock, adopts the server that a killed gateway
    left there or ends it and starts a new one, and returns when the server answers, its data
    loaded. Leaving stops the server with SIGTERM (it syncs its file first) and, should that take
    longer than `stop_timeout_seconds`, with SIGKILL. `start_timeout_seconds` is the longest time
    without an answer; a server that says it is loading its data is given the time it needs.

    The server has a session of its own, so that Ctrl-C in a terminal reaches only the gateway,
    which stops it after its streams are drained.

    Entering raises EmbeddedServerError, DataDirectoryInUse when another gateway is at work there.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        start_timeout_seconds: float = 15.0,
        stop_timeout_seconds: float = 10.0,
    ) -> None:
        self.data_dir = data_dir
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._lock: DataDirectoryLock | None = None
        self._server: _Server | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """`unix://<socket>?db=0`, as redis-py reads it."""
        return f"unix://{quote(str(self._running.socket))}?db=0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running.process.pid

    @property
    def adopted(self) -> bool:
        """Whether an earlier gateway started it."""
        return self._running.adopted

    async def exited(self) -> None:
        """Wait for the server to end; raise EmbeddedServerError when nobody asked it to.

        Meant for a task that lives as long as the gateway. Returns only after a stop from here.
        """
        process = self._running.process
        # Asked, not told: nobody but a parent gets SIGCHLD, and the server may be adopted.
        while not has_ended(process):  # noqa: ASYNC110
            await asyncio.sleep(WATCH_SECONDS)
        if not self._stopping:
            raise self._death("ended while the gateway was running")

    async def __aenter__(self) -> Self:
        self.data_dir = prepare_directory(self.data_dir)
        self._lock = DataDirectoryLock(self.data_dir)
        try:
            self._server = await self._adopt() or self._launch(find_binary())
            await self._until_ready(self._server)
        except BaseException:  # A cancelled start too must leave no process behind.
            await self._stop()
            raise
        _log.info(
            "embedded server %s: process %d, %s",
            "adopted" if self.adopted else "started",
            self.pid,
            self.url,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _adopt(self) -> "_Server | None":
        """Return the server that a killed gateway left here if it is fit for use; end any other."""
        socket = recorded_socket(self.data_dir)
        answer = await ask(socket)
        # The scan reads a file or two for each process of the machine: off the loop.
        servers = await asyncio.to_thread(find_servers, self.data_dir)
        fit = self._choose(servers, answer, socket)
        unfit = [process for process in servers if process is not fit]
        for process in unfit:
            _log.warning("ending the server left in %s: process %d", self.data_dir, process.pid)
        await end_processes(unfit, timeout_seconds=self._stop_timeout_seconds)
        return None if fit is None else _Server(fit, socket, log_offset_bytes=0, adopted=True)

    def _choose(
        self, servers: list[psutil.Process], answer: "Answer | None", socket: Path
    ) -> psutil.Process | None:
        """Return the one that answered, if it suits; refuse an answer from any other process."""
        if answer is None:
            return None
        for process in servers:
            if process.pid == answer.process_id:
                return process if answer.suits(self.data_dir) else None
        raise self._error(
            f"process {answer.process_id} answers on {socket}, but it is not a server that this "
            "gateway may end: stop it, or give the gateway a directory of its own"
        )

    def _launch(self, binary: Path) -> "_Server":
        log = self.data_dir / LOG_NAME
        try:
            log_offset_bytes = begin_log(log)
            remove_unfinished_rewrites(self.data_dir)
            socket = place_socket(self.data_dir)
            with log.open("ab") as output:  # What it says before it opens its log itself.
                process = psutil.Popen(
                    _command(binary, self.data_dir, socket),
                    cwd=self.data_dir,
                    env={name: os.environ[name] for name in INHERITED if name in os.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    umask=0o077,
                )
        except OSError as error:
            remove_socket(self.data_dir)
            raise self._error(f"{binary} cannot be started: {error}") from error
        return _Server(process, socket, log_offset_bytes, adopted=False)

    async def _until_ready(self, server: "_Server") -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_timeout_seconds
        while True:
            answer = await ask(server.socket)
            if answer is not None and answer.process_id == server.process.pid:
                if not answer.loading:
                    return
                deadline = loop.time() + self._start_timeout_seconds
            if has_ended(server.process):
                raise self._death("ended at start")
            if loop.time() >= deadline:
                raise self._death(f"did not answer within {self._start_timeout_seconds:g} s")
            await asyncio.sleep(LOOK_SECONDS)

    async def _stop(self) -> None:
        self._stopping = True
        try:
            if self._server is not None:
                if not await end_processes(
                    [self._server.process], timeout_seconds=self._stop_timeout_seconds
                ):
                    _log.warning("the embedded server did not stop in time and was killed")
                remove_socket(self.data_dir)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    @property
    def _running(self) -> "_Server":
        if self._server is None:
            raise RuntimeError("the embedded server was not started")
        return self._server

    def _error(self, reason: str) -> EmbeddedServerError:
        return EmbeddedServerError(f"data_dir = {self.data_dir}", reason)

    def _death(self, what: str) -> EmbeddedServerError:
        """Tell what happened to the server, with the end of its log and, if known, the remedy."""
        log = self.data_dir / LOG_NAME
        lines = read_log_tail(log, self._running.log_offset_bytes)
        told = "".join(f"\n  {line}" for line in lines) or " nothing"
        broken = any(BROKEN_DATA.search(line) for line in lines)
        return self._error(
            f"the embedded server (process {self.pid}) {what}"
            f"{describe_status(self._running.process)}; the end of its log {log}:{told}"
            + (REMEDY.format(directory=self.data_dir / "appendonlydir") if broken else "")
        )


@dataclass(frozen=True, slots=True)
class _Server:
    """A server process, and what is to be known to use it and to tell of its end."""

    process: psutil.Process
    socket: Path
    log_offset_bytes: int
    adopted: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server on a socket says of itself."""

    process_id: int
    loading: bool
    settings: Mapping[str, str]

    def suits(self, data_dir: Path) -> bool:
        """Say whether it works in `data_dir` with the settings that the gateway counts on."""
        directory = self.settings.get("dir", "")
        return (
            all(self.settings.get(name) == value for name, value in SERVER_SETTINGS.items())
            and os.path.isdir(directory)
            and os.path.samefile(directory, data_dir)
        )


async def ask(socket: Path) -> Answer | None:
    """Ask the server on `socket` who it is; None when nobody answers in time."""
    client: Any = Redis(  # redis-py types both flavours of a command at once.
        unix_socket_path=str(socket), decode_responses=True, retry=Retry(NoBackoff(), 0)
    )
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS), client:
            # Both commands are answered while the data is being loaded.
            info = await client.info()
            settings = await client.config_get("*")
    except (RedisError, OSError):
        return None
    return Answer(int(info["process_id"]), bool(int(info["loading"])), settings)


def _command(binary: Path, data_dir: Path, socket: Path) -> list[str]:
    settings = {
        **SERVER_SETTINGS,
        "dir": str(data_dir),
        "unixsocket": str(socket),
        "logfile": str(data_dir / LOG_NAME),
        "daemonize": "no",
        "set-proc-title": "no",  # `ps` then shows the command as it stands here.
    }
    return [
        str(binary),
        *(part for name, value in settings.items() for part in (f"--{name}", value)),
    ]
