"""The code of a page (README.md, docs/*.md) in the order in which a reader meets it, and what runs it.

The fence says what a block is: ``python`` and ``bash`` run, ``yaml`` is read as (a part of) a recipe, ``text`` is what
a command prints. Words after the language:

``no-run``       needs what only the reader has: a real model, data, a GPU, an installer
``slow``         runs in make test-all alone
``needs=a,b``    skips the rest of the page where a package is missing
``file=NAME``    is saved under that name, as the page tells the reader to do
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_stages import recipes
from hf_stages.commands.cli import main as hf_stages

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "bash", "yaml", "text"}


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    kind: str
    words: tuple[str, ...]
    code: str

    def values(self, key: str) -> list[str]:
        return [v for w in self.words if w.startswith(f"{key}=") for v in w.removeprefix(f"{key}=").split(",")]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        kind, *words = found[1].split() or [""]
        yield Block(page.name, text.count("\n", 0, found.start(2)) + 1, kind, tuple(words), found[2])


def walk(page: Path, *, slow: bool) -> None:
    """Run a page from top to bottom in the current folder, as its reader would."""
    namespace: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    for block in blocks_of(page):
        if "no-run" in block.words or ("slow" in block.words and not slow):
            continue
        for package in block.values("needs"):
            pytest.importorskip(package, reason=f"{page.name} needs {package}: pip install '.[dev]'")
        for name in block.values("file"):
            Path(name).write_text(block.code, encoding="utf-8")
        if block.kind == "python":
            # Blank lines in front make the line numbers of a traceback those of the page. The reader has no __future__.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True), namespace)
        elif block.kind == "bash":
            for number, line in enumerate(block.code.splitlines(), start=block.line):
                _run(line, f"{page.name}:{number}")
        elif block.kind == "yaml":
            _read(block)


def _run(line: str, where: str) -> None:
    """A line of a shell: hf-stages, its output written to a file where the line says so."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[0] == "hf-stages", f"{where}: a block that runs holds hf-stages alone, got {line!r}; say no-run"
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[1 : words.index(">") if target else None]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = hf_stages(words)
    assert code == 0, f"{where}: {line!r} exits with {code}"
    if target:
        Path(target).write_text(printed.getvalue(), encoding="utf-8")


def _read(block: Block) -> None:
    """A recipe, or a part of one: what it leaves out is filled in."""
    data = yaml.safe_load(block.code)
    stage = {"name": "main", "until": "1 steps"}
    if data.keys() & {"gates", "loss", "transforms", "schedule", "until"}:  # the keys of a stage
        data = {"stages": [{**stage, **data}]}
    try:
        recipes.from_dict({"stages": [stage], **data})
    except ValueError as error:
        raise AssertionError(f"{block.page}:{block.line}: {error}") from error
