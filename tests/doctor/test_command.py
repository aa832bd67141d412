"""`sse-gateway doctor` for scripts, and its documentation."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.doctor.breaking import inside
from tests.doctor.test_doctor import BROKEN, CUT, WARNED
from tests.doctor.test_stopped import DEAD
from tests.edge.running import nginx, origin_of
from tests.running import Worker, free_port

ROOT = Path(__file__).parents[2]


def test_every_check_that_is_documented_is_tried_here() -> None:
    text = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    documented = {
        name
        for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
        for name in re.findall(r"`([a-z0-9.-]+)`", row)
    }
    tried = set().union(
        *[checks for checks, _ in (*BROKEN.values(), *CUT.values(), *WARNED.values())]
    )
    tried |= {check for check, _ in DEAD.values()}
    # In tests of their own below.
    assert documented - tried == {
        "http2", "gateway", "life", "query", "collapsing", "delivery", "snapshot", "buffering",
    }  # fmt: skip
    assert tried <= documented


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "doctor", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.asyncio(loop_scope="module")
async def test_the_exit_status_and_the_json_are_for_scripts(origin: Worker, tmp_path: Path) -> None:
    common = ("--channel", "a/b", "--idle", "1", "--insecure")
    edit = inside("/snapshots", "proxy_hide_header ETag;")
    dead = f"http://127.0.0.1:{free_port()}"
    async with (
        nginx(tmp_path / "good", origin_of(origin.url)) as good,
        nginx(tmp_path / "bad", origin_of(origin.url), edit=edit) as bad,
    ):
        ran = await asyncio.gather(
            run(good.tls_url, *common, "--json", "--publish-url", origin.url),
            run(bad.url, *common),
            run(dead, *common),
            run(dead, "--stopped", "--publish-url", dead),
            run(dead, "--channel", "a b"),
        )
    assert [code for code, _, _ in ran] == [0, 1, 2, 2, 2]
    document = json.loads(ran[0][1])
    assert (document["worst"], document["channel"]) == ("ok", "a/b")
    assert all(set(one) == {"check", "level", "text", "mend"} for one in document["findings"])
    assert "proxy_hide_header ETag" in ran[1][1]
    for (_, _, error), said in zip(
        ran[2:], ("Error:", "--stopped", "must be segments"), strict=True
    ):
        assert said in error
