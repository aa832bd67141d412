"""The floors of the package: imports only go down, sideways never, and nowhere in a circle."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "protocol": 1,
    "store": 2,
    "auth": 2,
    "hub": 3,
    "snapshot": 3,
    "purge": 3,
    "sources": 3,
    "web": 4,
    "telemetry": 4,
    "doctor": 5,
    "cli": 6,
    "__main__": 7,
}
COMPOSITION = 5
"""The floor of every other module that stands directly in the package."""

FORBIDDEN_IN_PROTOCOL = {"asyncio", "aiohttp", "redis", "time"}


@dataclass(frozen=True)
class Import:
    """One import statement of a module; `typing_only` when it never runs."""

    importer: str
    imported: str
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node: ast.AST, package: str, modules: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        source = ".".join([*above, *([node.module] if node.module else [])])
    # `from package import name` may name a module or something in the package itself.
    return [
        f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules else source
        for alias in node.names
    ]


def walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        below = typing_only
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            below = True
        yield child, below
        yield from walk(child, below)


def read_imports(root: Path) -> list[Import]:
    files = {module_name(path, root): path for path in sorted(root.glob("gateway/**/*.py"))}
    found: list[Import] = []
    for module, path in files.items():
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        for node, typing_only in walk(ast.parse(path.read_text(encoding="utf-8")), False):
            found += [
                Import(module, name, getattr(node, "lineno", 0), typing_only)
                for name in imported_names(node, package, set(files))
            ]
    return found


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else None


def floor_of(module: str) -> int:
    package = package_of(module)
    return FLOORS[package] if package else COMPOSITION


def breaches(imports: list[Import]) -> list[str]:
    found = []
    for one in imports:
        inside = one.imported.split(".")[0] == "gateway"
        # The package's own __init__ holds nothing but its version.
        if not inside or one.imported == "gateway":
            continue
        here, there = package_of(one.importer), package_of(one.imported)
        sideways = floor_of(one.importer) == floor_of(one.imported) and here != there
        if floor_of(one.importer) < floor_of(one.imported) or sideways:
            found.append(str(one))
    return found


def cycle(imports: list[Import]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for one in imports:
        if one.imported.startswith("gateway") and not one.typing_only:
            graph.setdefault(one.importer, set()).add(one.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def impurities(imports: list[Import]) -> list[str]:
    return [
        str(one)
        for one in imports
        if package_of(one.importer) == "protocol"
        and one.imported.split(".")[0] in FORBIDDEN_IN_PROTOCOL
    ]


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(ROOT)


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in ROOT.glob("gateway/*/__init__.py")}
    assert packages <= set(FLOORS)
    assert "protocol" in packages


def test_imports_only_go_down(imports: list[Import]) -> None:
    assert len(imports) > 50
    assert breaches(imports) == []


def test_no_modules_import_each_other_in_a_circle(imports: list[Import]) -> None:
    assert cycle(imports) == []


def test_the_protocol_knows_no_sockets_no_store_and_no_clock(imports: list[Import]) -> None:
    assert impurities(imports) == []


def test_what_breaks_the_floors_is_found(tmp_path: Path) -> None:
    files = {
        "protocol/__init__.py": "",
        "protocol/event.py": "import time\nfrom gateway.store import redis\n",
        "store/__init__.py": "",
        "store/redis.py": "from ..auth.grants import Grant\nimport gateway.protocol.event\n",
        "auth/__init__.py": "",
        "auth/grants.py": "import aiohttp\n\ndef late() -> None:\n    from gateway import cli\n",
        "cli/__init__.py": "from gateway.cli import serve\n",
        "cli/serve.py": "import gateway.app\n",
        "app.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gateway.cli\n",
        "__main__.py": "from gateway import cli\n",
        "__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "gateway" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    imports = read_imports(tmp_path)
    assert breaches(imports) == [
        "gateway.app:3 imports gateway.cli",
        "gateway.auth.grants:4 imports gateway.cli",
        "gateway.protocol.event:2 imports gateway.store.redis",
        "gateway.store.redis:1 imports gateway.auth.grants",
    ]
    assert set(cycle(imports)) == {"gateway.protocol.event", "gateway.store.redis"}
    assert impurities(imports) == ["gateway.protocol.event:1 imports time"]
