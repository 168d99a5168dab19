"""Runs the Python in README.md and docs/*.md: the blocks of a page share one namespace, from top to bottom.

A block whose fence says ```` ```python no-run ```` is left out; ```` ```python needs=a,b ```` skips the page where a package is missing.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python *([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path) -> list[tuple[int, str, str]]:
    """(first line, code, fence) of every block that runs."""
    text = page.read_text(encoding="utf-8")
    found = BLOCK.finditer(text)
    return [(text.count("\n", 0, m.start(2)) + 1, m[2], m[1]) for m in found if "no-run" not in m[1].split()]


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page)], ids=lambda page: page.name)
def test_python_in_docs_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))  # pages may import from examples/
    namespace = {"__name__": f"docs_{page.stem}"}
    for line, code, fence in _blocks(page):
        for package in fence.removeprefix("needs=").split(",") if fence.startswith("needs=") else ():
            pytest.importorskip(package, reason=f"{page.name} needs {package}: pip install '.[dev]'")
        # Blank lines in front make the line numbers of a traceback those of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
