"""Holds the import table of the design: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stabilitylab"
TOP = "stabilitylab"

# room -> the rooms it may import (besides itself, errors, layernames, metrics, registry and unfinished)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "layernames": (),
    "metrics": (),
    "registry": (),
    "version": (),
    "unfinished": (),
    "signals": (),
    "datasets": (),
    "config": ("signals", "datasets"),
    "data": ("config", "datasets"),
    "models": ("config",),
    "methods": ("config", "models"),
    "recording": ("signals", "models.layers"),
    "store": ("signals",),
    "train": ("config", "data", "models", "methods", "recording"),
    "analysis": ("signals",),
    "comparison": ("signals", "analysis"),
    "run": ("signals", "store", "analysis", "comparison", "report.plots", "report.writing"),
    "report": (
        "signals",
        "run.analysed",
        "analysis.results",
        "analysis.series",
        "analysis.sentences",
        "analysis.metrics",
        "comparison",
    ),
    "attach": ("signals", "analysis", "recording", "models.layers", "store", "run.provenance"),
    "integrations": ("attach",),
    "importers": ("signals", "recording", "models.layers", "store", "run.provenance", "metrics"),
    "studies": ("*",),
    "cause": ("*",),
    "cli": ("*",),
    "__main__": ("cli",),
}
NEVER: dict[str, tuple[str, ...]] = {
    "errors": ("torch", "duckdb"),
    "registry": ("torch", "duckdb"),
    "datasets": ("torch", "duckdb"),
    "signals": ("torch", "duckdb"),
    "config": ("torch", "duckdb"),
    "store": ("torch",),
    "analysis": ("torch", "duckdb"),
    "comparison": ("torch", "duckdb"),
    "run": ("torch",),
    "report": ("torch", "duckdb"),
}
OUTERMOST = ("cli", "__main__")  # nobody imports these


def imports(source: str) -> Iterator[str]:
    """Every module an import statement names, at any depth, with the names taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        for target in imports(path.read_text(encoding="utf-8")):
            first = target.split(".")[0]
            if first != TOP:
                if first in NEVER.get(room, ()):
                    found.append(f"{'/'.join(parts)} imports {first}")
                continue
            inside = target.removeprefix(f"{TOP}.")
            other = inside.split(".")[0]
            if room == "__init__" or other in (
                room,
                "errors",
                "layernames",
                "metrics",
                "registry",
                "unfinished",
                "version",
                "__version__",
            ):
                continue
            allowed = MAY_IMPORT.get(room, ())
            everything = "*" in allowed and other not in OUTERMOST
            if not everything and not any(inside == name or inside.startswith(f"{name}.") for name in allowed):
                found.append(f"{'/'.join(parts)} imports {inside}")
    return found


def test_the_import_table_holds() -> None:
    assert violations(PACKAGE) == []


def circles(package: Path) -> list[list[str]]:
    """Circles among the modules, counting imports inside functions too."""
    known = {".".join((TOP, *path.relative_to(package).with_suffix("").parts)) for path in package.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module in known:
        path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        targets = set(imports(path.read_text(encoding="utf-8")))
        named = {t if t in known else t.rpartition(".")[0] for t in targets}
        graph[module] = {n if n in known else f"{n}.__init__" for n in named} & known - {module}
    return [sorted(part) for part in strongly_connected(graph) if len(part) > 1]


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that all reach one another, by reachability: the graph is small."""
    reach: dict[str, set[str]] = {}
    for node in graph:
        seen, todo = set(), [node]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        reach[node] = seen
    parts = ({node} | {other for other in reach[node] if node in reach[other]} for node in graph)
    return [set(part) for part in {frozenset(part) for part in parts}]


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles(PACKAGE) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from stabilitylab.b import x")
    (tmp_path / "b.py").write_text("def f():\n    from stabilitylab import a")
    assert circles(tmp_path) == [["stabilitylab.a", "stabilitylab.b"]]


def test_every_room_is_in_the_table() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("store/reader.py", "import torch"),
        ("analysis/lag.py", "from stabilitylab.store.reader import open_run"),
        ("train/trainer.py", "def f():\n    from stabilitylab.report import html"),
        ("report/html.py", "from stabilitylab.analysis.detection.spikes import detect_spikes"),
        ("recording/recorder.py", "from stabilitylab.models import build_encoder"),
        ("data/views.py", "from stabilitylab.models.vit import build_vit"),
        ("config.py", "from torch import nn"),
        ("methods/base.py", "from stabilitylab.cli import main"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, place: str, source: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(source)
    assert len(violations(tmp_path)) == 1


def test_files_are_one_room_each() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in ("utils", "misc", "helpers")
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{path} passes 300 lines: look for the wall"


@pytest.mark.parametrize(
    "module", ["stabilitylab", "stabilitylab.cli", "stabilitylab.cli.train", "stabilitylab.cli.analyze"]
)
def test_torch_is_imported_only_when_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
