"""Shared by all tests: no network, no noise, two threads; tiny models and data as fixtures."""

from __future__ import annotations

import os

# Set before transformers and datasets are imported, which read them once; subprocesses inherit them.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    # Workers side by side get a core each: tiny models gain nothing from a second one.
    "OMP_NUM_THREADS": "1" if "PYTEST_XDIST_WORKER" in os.environ else "2",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait crawl on busy cores
}

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.support import tiny

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> Iterator[None]:
    """Trainer collects garbage at each start, which walks over every object of torch and transformers: 0.3 s each."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def tiny_llama() -> Callable:
    """``tiny_llama(seed=0, **config)`` gives a fresh LlamaForCausalLM; so do its brothers below."""
    return tiny.llama


@pytest.fixture
def tiny_bert() -> Callable:
    return tiny.bert


@pytest.fixture
def tiny_t5() -> Callable:
    return tiny.t5


@pytest.fixture
def tiny_vit() -> Callable:
    return tiny.vit


@pytest.fixture(scope="session")
def lm_data() -> Dataset:
    return tiny.lm_data()


@pytest.fixture(scope="session")
def class_data() -> Dataset:
    return tiny.class_data()


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """``run_python(code, *args, check=True, env={}, timeout=120)`` runs code in a process of its own, in ``tmp_path``.

    It sees ``hf_stages``, ``tests.support.tiny`` and the examples of this tree. With ``check``, a failure shows its
    stderr.
    """

    def run(code: str, *args: str, check: bool = True, timeout: float = 120, env: dict[str, str] | None = None):
        script = tmp_path / "script.py"
        script.write_text(code, encoding="utf-8")
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, str(script), *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}", pytrace=False)
        return done

    return run


@pytest.fixture(scope="module")
def quick_gc():
    """A stage collects garbage as it begins, which takes half a second among all the modules that tests import."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def driver():
    """``driver.run(out, kill=..., resume=...)`` trains ``tests.support.killable_run`` in a process that may die."""
    from tests.support.driver import Driver

    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture(scope="session")
def whole_run(driver, tmp_path_factory) -> Callable[..., Path]:
    """``whole_run(**options)`` is the folder of the run that was never cut, trained once."""
    runs: dict[str, Path] = {}

    def run(**options) -> Path:
        key = repr(sorted(options.items()))
        if key not in runs:
            out = runs[key] = tmp_path_factory.mktemp("whole") / "out"
            assert driver.run(out, **options) == "done"
        return runs[key]

    return run
