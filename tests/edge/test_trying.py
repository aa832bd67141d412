"""What docs/operations.md says of trying NGINX: the commands, as they stand there."""

import asyncio
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.edge.running import listens, origin_of, publish
from tests.edge.test_nginx import ask
from tests.running import Valkey, free_port, worker

ROOT = Path(__file__).parents[2]
BLOCKS = re.compile(r"Try it beside `make run`.*?```sh\n(.*?)```.*?```sh\n(.*?)```", re.DOTALL)


def commands() -> tuple[str, str]:
    """Return what makes and starts NGINX, and what looks at it."""
    found = BLOCKS.search((ROOT / "docs/operations.md").read_text())
    assert found is not None
    return found[1], found[2]


async def test_nginx_can_be_tried_as_written(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    make, look = commands()
    setting_up, starting = make[: make.index("nginx -c")], make[make.index("nginx -c") :]
    assert ".venv/bin/sse-gateway " in setting_up
    here = {"8000": free_port(), "8443": free_port()}
    for said, port in here.items():
        assert said in make
        setting_up, look = (text.replace(said, str(port)) for text in (setting_up, look))
    # Another NGINX may run on this machine: what is its own by default is the test's.
    places = {"/run/nginx.pid": "nginx.pid", "/var/log/nginx": ".", "127.0.0.1:8081": ""}
    async with worker(redis.url) as origin:
        await publish(session, origin, "host/cpu/0", "1")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GATEWAY_PORT": origin_of(origin.url).partition(":")[2],
        }
        command = f"{sys.executable} -m gateway "
        subprocess.run(
            ["bash", "-ec", setting_up.replace(".venv/bin/sse-gateway ", command)],
            cwd=tmp_path, env=environment, check=True, capture_output=True,
        )  # fmt: skip
        file = tmp_path / "nginx-try.conf"
        text = file.read_text()
        for old, new in places.items():
            assert old in text
            place = str(tmp_path / new) if new else f"127.0.0.1:{free_port()}"
            text = text.replace(old, place)
        text = text.replace("/var/lib/nginx/sse-gateway ", f"{tmp_path}/cache ")
        file.write_text(f"user root;\n{text}")
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", f"exec {starting}", cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(20):
                while not await listens(here["8443"]):
                    assert process.returncode is None
                    await asyncio.sleep(0.02)
            plain = await ask(session, f"http://localhost:{here['8000']}/snapshots/host/cpu/0")
            assert plain.status == 200
            *snapshots, stream = look.splitlines()
            seen = [await said_by(line) for line in snapshots]
            assert len(seen) == 2
            assert re.search(r"^x-cache: (HIT|STALE|UPDATING)\r$", seen[1], re.MULTILINE)
            assert "retry: " in await said_by(stream, until="retry: ")
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def said_by(command: str, until: str = "") -> str:
    """Return what a command prints, to its end, or as far as what is waited for."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f"exec {command}", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(20):
            while part := await process.stdout.read(65536):
                said += part.decode()
                if until and until in said:
                    break
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return said
