"""C programs of the benchmarks, compiled when they are first needed; it runs none of them."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
MISSING = "no C compiler: apt-get install gcc libc6-dev"


class NoCompilerError(Exception):
    """There is no C compiler."""


def find_compiler() -> str:
    """Return the name of a C compiler, nothing where there is none."""
    return next((name for name in COMPILERS if shutil.which(name)), "")


def compile_c(source: Path) -> Path:
    """Return the program made of a C file, or of all C files of a folder.

    It is kept, and made anew only when a source, or a header beside it, has changed.
    Raises NoCompilerError.
    """
    files = sorted(source.glob("*.[ch]")) if source.is_dir() else [source]
    digest = hashlib.sha256()
    for file in files:
        text = file.read_bytes()
        digest.update(f"{file.name} {len(text)}\n".encode() + text)
    program = _cache_folder() / f"{source.stem}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    compiler = find_compiler()
    if not compiler:
        raise NoCompilerError(MISSING)
    program.parent.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    sources = [str(file) for file in files if file.suffix == ".c"]
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(fresh), *sources], check=True)
    fresh.rename(program)
    return program


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sse-gateway-benchmarks"
