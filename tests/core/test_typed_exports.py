"""What packages give lazily is told to type checkers too, and to ``import *``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import typed_exports

PACKAGES = typed_exports.packages()


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_type_checkers_see_all_names(path):
    found = typed_exports.written(path)
    assert found == typed_exports.given(path), "out of date: run `python -m tests.support.typed_exports`"


def test_star_imports_give_the_public_names():
    for package in ("hf_stages", "hf_stages.losses", "hf_stages.recipes"):
        names: dict[str, object] = {}
        exec(f"from {package} import *", names)
        expected = {name for path in PACKAGES for _, name in typed_exports.written(path) if _package(path) == package}
        assert set(names) - {"__builtins__"} == expected


def test_a_slip_in_a_user_s_script_is_seen_by_mypy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from hf_stages import Plateau, Stage\nfrom hf_stages.losses import Loss\n\n\nclass Mine(Loss):\n    pass\n\n\n"
        'Stage("a", until="1 steps", los=Mine())\nPlateau(nope=3)\n'
    )
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--cache-dir", str(tmp_path), str(script)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=typed_exports.ROOT, check=False).stdout
    assert 'Unexpected keyword argument "los"' in said
    assert 'Unexpected keyword argument "nope"' in said


def _package(path):
    return ".".join(path.parent.relative_to(typed_exports.ROOT).parts)
