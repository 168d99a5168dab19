"""The names that packages give lazily, written out for type checkers: ``python -m tests.support.typed_exports``.

At run time a new part is found by its file alone. Type checkers do not run code, so each package's ``__init__`` also
has its imports under ``TYPE_CHECKING``. This writes them anew, and a test says where they are out of date.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_HEAD = "if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`\n"


def packages() -> list[Path]:
    """The ``__init__`` files of packages that give names lazily."""
    return [path for path in sorted((ROOT / "hf_stages").rglob("__init__.py")) if "_EXPORTS = " in path.read_text()]


def given(path: Path) -> set[tuple[str, str]]:
    """(module, name) of everything that a package gives at run time."""
    exports = _exports(path)
    return {(exports.module_of(name), name) for name in exports.names()}


def written(path: Path) -> set[tuple[str, str]]:
    """(module, name) of everything that its ``__init__`` tells type checkers."""
    blocks = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)]
    return {(line.module or "", alias.asname or "") for line in imports for alias in line.names}


def write(path: Path) -> None:
    """Bring the block of one ``__init__`` up to date."""
    modules: dict[str, list[str]] = defaultdict(list)
    for module, name in sorted(given(path)):
        modules[module].append(name)
    lines = [f"    from {module} import {name} as {name}\n" for module in sorted(modules) for name in modules[module]]
    text = path.read_text(encoding="utf-8")
    if _HEAD in text:
        before, rest = text.split(_HEAD, 1)
        text = before + rest[rest.index("\n\n") + 2 :].lstrip("\n")
    start = text.index("_EXPORTS = ")
    text = text[:start] + _HEAD + "".join(lines) + "\n" + text[start:]
    if "import TYPE_CHECKING" not in text:
        text = text.replace("from typing import Any\n", "from typing import TYPE_CHECKING, Any\n", 1)
    path.write_text(text, encoding="utf-8")


def _exports(path: Path) -> Any:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return importlib.import_module(package)._EXPORTS


if __name__ == "__main__":
    for package in packages():
        write(package)
