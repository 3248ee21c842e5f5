"""docs/architecture.md in force: imports go down the floors only, and rooms stay small."""

import ast
import functools
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ctm"
FLOORS = [
    {
        "arguments",
        "betas",
        "conditioner",
        "conditions",
        "keystream",
        "noise",
        "weighting",
        "parametrization",
        "philox",
        "preconditioning",
        "requests",
        "scaling",
        "solvers",
        "version",
    },
    {"backbones", "discriminators", "files", "foreign", "hub", "lock", "networks", "models", "teachers"},
    {"objectives", "sampling", "likelihood", "guidance", "editing", "provenance"},
    {"console", "data", "evaluation", "export", "pictures", "progress", "safety", "training"},
    {"cli", "bench", "commands", "demo", "distill", "serve", "terminal", "__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Each file is parsed once for all tests here."""
    return ast.parse(path.read_text())


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ctm":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names if alias.name in FLOOR_OF}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ctm.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    upwards = {other for other in imported_rooms(path) if FLOOR_OF[other] > FLOOR_OF[room(path)]}
    assert not upwards, f"{path} imports from a floor above its own: {upwards}"


def test_rooms_of_one_floor_import_each_other_in_one_direction():
    """No circle of rooms, also through imports inside functions: `ast.walk` sees those."""
    imports: dict[str, set[str]] = {}
    for path in FILES:
        same = {other for other in imported_rooms(path) if FLOOR_OF[other] == FLOOR_OF[room(path)]} - {room(path)}
        imports.setdefault(room(path), set()).update(same)
    left = dict(imports)
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these rooms import each other in a circle: {left}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_the_maths_floor_knows_no_files_and_no_settings():
    for name in FLOORS[0]:
        modules = {
            alias.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
            for node in ast.walk(parsed(PACKAGE / f"{name}.py"))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        standard = {
            "collections",
            "contextlib",
            "contextvars",
            "dataclasses",
            "functools",
            "hashlib",
            "hmac",
            "inspect",
            "itertools",
            "math",
            "operator",
            "re",
            "types",
            "typing",
            "warnings",
        }
        assert modules <= {"__future__", "torch", "ctm"} | standard


def test_text_files_are_utf_8_in_any_locale():
    calls = re.compile(r"\.(?:read_text\(\)|write_text\((?!.*encoding=).*\)|open\(\"[rwa]\+?\"\))")
    lines = [(path.name, line) for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(name, line.strip()) for name, line in lines if calls.search(line)] == []
