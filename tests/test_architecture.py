"""The shape of the code: who may import whom, how long things may get, what must not appear."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_stages"

FILE_LINES, FUNCTION_LINES = 420, 60  # aim at 400 and 40; docstrings of functions do not count
MAY_PRINT = (
    "cli",
    "cli_compare",
    "cli_new",
    "commands",
    "reports",
    "signals",
)  # signals: what Ctrl-C answers, logging aside
# Paths of one machine have no place in the repository. Spelled so that this file does not match itself.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wo[r]k|ro[o]t)/|/tmp/bas[h]_jobs")

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def _unit(path: Path) -> str:
    """The file or folder right under hf_stages that a file belongs to: ``stage``, ``losses``, ``__init__``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@each_file
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines: it asks for another noun"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            length = node.end_lineno - node.lineno + 1 - docstring
            assert length <= FUNCTION_LINES, f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines"


@each_file
def test_only_the_cli_and_reports_print(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert _unit(path) in MAY_PRINT, f"{path.relative_to(ROOT)}:{node.lineno}: print(); use logging"


def test_every_folder_is_a_package() -> None:
    missing = [str(p.parent.relative_to(ROOT)) for p in FILES if not (p.parent / "__init__.py").exists()]
    assert not missing, f"without __init__.py: {', '.join(sorted(set(missing)))}"


def test_no_machine_paths_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            assert not MACHINE_PATHS.search(line), f"{name}:{number}: a path of one machine: {line.strip()}"
