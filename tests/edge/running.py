"""Real edges for tests: NGINX with the configuration that ships, Varnish with its VCL."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from gateway.cli.nginx_config import Edge as Places
from gateway.cli.nginx_config import render, template_directory
from gateway.protocol.channel import namespace_of
from gateway.protocol.position import Position
from gateway.settings import Settings
from tests.running import Worker, free_port, until


@dataclass
class Edge:
    """One running edge. `tls_url` is NGINX's alone."""

    url: str
    directory: Path
    tls_url: str = ""
    internal_url: str = ""

    def log(self) -> str:
        """Return what it said of errors."""
        return "".join(
            file.read_text(errors="replace") for file in sorted(self.directory.glob("*error.log"))
        )


@cache
def _certified() -> tuple[bytes, bytes]:
    """Make a certificate of one's own for loopback, and its key; once, for it takes a while."""
    with TemporaryDirectory() as directory:
        made, key = Path(directory, "tls.pem"), Path(directory, "tls.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(made)],
            check=True, capture_output=True,
        )  # fmt: skip
        return made.read_bytes(), key.read_bytes()


def certificate(directory: Path) -> tuple[Path, Path]:
    """Put a certificate for loopback into a directory; return its file and its key's."""
    files = directory / "tls.pem", directory / "tls.key"
    for file, content in zip(files, _certified(), strict=True):
        file.write_bytes(content)
    return files


async def listens(port: int) -> bool:
    """Tell whether somebody listens on a port of loopback."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _until_listening(process: asyncio.subprocess.Process, *ports: int) -> None:
    async with asyncio.timeout(20):
        for port in ports:
            while not await listens(port):
                assert process.returncode is None, "it did not start"
                await asyncio.sleep(0.02)


@asynccontextmanager
async def nginx(
    directory: Path,
    origin: str,
    *,
    settings: Mapping[str, Any] | None = None,
    edit: Callable[[str], str] = lambda text: text,
    workers: int = 1,
    **places: Any,
) -> AsyncIterator[Edge]:
    """Run NGINX with the shipped configuration before a gateway at `origin` (`host:port`).

    `settings` are the gateway's, `places` members of the command's Edge; `edit` changes the text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    http, https, internal = free_port(), free_port(), free_port()
    made, key = certificate(directory)
    edge = Places(
        origin=origin, http=f"127.0.0.1:{http}", https=f"127.0.0.1:{https}",
        internal=f"127.0.0.1:{internal}", certificate=str(made), key=str(key),
        cache=str(directory / "cache"), logs=str(directory), pid=str(directory / "nginx.pid"),
        **places,
    )  # fmt: skip
    text = render(Settings(**(settings or {})), edge)
    # Temporary files of a test lie with the test; the processes may write where root made them.
    paths = "".join(
        f"    {kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {\n", f"http {{\n{paths}", 1)
    text = text.replace("worker_processes auto;", f"worker_processes {workers};\nuser root;", 1)
    text = text.replace("worker_rlimit_nofile 65536;", "worker_rlimit_nofile 20000;", 1)
    text = text.replace(" buffer=64k flush=5s", "", 1)
    file = directory / "nginx.conf"
    file.write_text(edit(text))
    process = await asyncio.create_subprocess_exec(
        "nginx", "-c", str(file), "-e", str(directory / "error.log"), "-g", "daemon off;",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await _until_listening(process, http, https, internal)
        yield Edge(
            f"http://127.0.0.1:{http}", directory, f"https://localhost:{https}",
            f"http://127.0.0.1:{internal}",
        )  # fmt: skip
    finally:
        await _stop(process)


@asynccontextmanager
async def varnish(
    directory: Path, origin: str, *, edit: Callable[[str], str] = lambda text: text
) -> AsyncIterator[Edge]:
    """Run Varnish with the shipped VCL before a gateway at `origin` (`host:port`).

    Its probe waits for gateways that share one event loop with many tests.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port, internal = free_port(), free_port()
    host, _, origin_port = origin.rpartition(":")
    text = (template_directory() / "varnish.vcl").read_text()
    text = text.replace('.host = "127.0.0.1";', f'.host = "{host}";')
    text = text.replace('.port = "8080";', f'.port = "{origin_port}";')
    assert ".timeout = 1s;" in text
    text = text.replace(".timeout = 1s;", ".timeout = 20s;")
    file = directory / "varnish.vcl"
    file.write_text(edit(text))
    with (directory / "varnish-error.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "varnishd", "-F", "-n", str(directory / "varnish"), "-a", f"readers=127.0.0.1:{port}",
            "-a", f"internal=127.0.0.1:{internal}", "-f", str(file),
            "-s", "malloc,64m", "-p", "thread_pool_max=2000", "-p", "thread_pool_min=50",
            "-j", "none", stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await _until_listening(process, port, internal)
        yield Edge(
            f"http://127.0.0.1:{port}", directory, internal_url=f"http://127.0.0.1:{internal}"
        )
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        await process.wait()


def origin_of(url: str) -> str:
    """Return the `host:port` of a URL."""
    return url.partition("://")[2].partition("/")[0]


async def publish(session: aiohttp.ClientSession, origin: Worker, channel: str, data: str) -> str:
    """Publish an event, and return its id when the gateway has it itself, too."""
    async with session.post(f"{origin.url}/publish/{channel}", data=data.encode()) as answer:
        assert answer.status == 200, await answer.text()
        id = str((await answer.json())["id"])
    tails = origin.gateway.tails
    mirror = tails[namespace_of(channel, tails)].mirror
    await until(lambda: mirror.tailed >= Position.parse(id))
    return id
