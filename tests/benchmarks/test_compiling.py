"""C programs are compiled once, and again when a source has changed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.compiling import compile_c

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


def test_a_changed_header_makes_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "program"
    source.mkdir()
    (source / "main.c").write_text('#include "status.h"\nint main(void) { return status(); }\n')
    (source / "status.c").write_text('#include "status.h"\nint status(void) { return STATUS; }\n')
    statuses = []
    for status in (3, 4, 3):
        (source / "status.h").write_text(f"#define STATUS {status}\nint status(void);\n")
        statuses.append(subprocess.run([compile_c(source)], check=False).returncode)

    assert statuses == [3, 4, 3]
    assert len(list((tmp_path / "cache").glob("*/program-*"))) == 2
