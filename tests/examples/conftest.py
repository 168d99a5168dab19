"""Fixtures of the tests of examples. ``pythonpath`` in setup.cfg makes the scripts importable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def one_thread():
    """Models as small as these lose more by sharing work than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_example(tmp_path: Path) -> Callable[..., str]:
    """``run_example("demo", "--steps", "6")`` runs a script in ``tmp_path`` and gives what it printed."""

    def run(name: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / f"{name}.py"), *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode:
            pytest.fail(f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}", pytrace=False)
        return done.stdout

    return run
