"""The oldest supported transformers and the one at hand read each other's packed files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.packing.models import loaded, logits, quantized

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_gc")]
OLDEST = "5.19.0"
KINDS = ["bert-split", "bert-half-width", "llama-tied", "t5-tied", "vit"]
ELSEWHERE = """
import sys, torch, transformers
from pathlib import Path
from hf_stages.packing import pack
from tests.packing.models import loaded, logits, quantized
version, here, out, *kinds = sys.argv[1:]
assert transformers.__version__ == version, transformers.__version__
for kind in kinds:
    torch.save(logits(loaded(Path(here) / kind, kind)), Path(out) / f"{kind}.pt")
    pack(quantized(kind), Path(out) / kind, rest="float32", embeddings=None)
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory) -> Path:
    """The oldest supported transformers in a folder of its own, beside what else is installed."""
    target = tmp_path_factory.mktemp("oldest")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(target),
        f"transformers=={OLDEST}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"transformers {OLDEST} cannot be installed: {done.stderr.strip()[-200:]}")
    return target


def test_files_of_each_version_of_transformers_load_in_the_other(oldest, tmp_path, run_python):
    from hf_stages.packing import pack

    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    models = {kind: quantized(kind) for kind in KINDS}
    for kind, model in models.items():
        pack(model, here / kind, rest="float32", embeddings=None)
    paths = os.pathsep.join([str(oldest), os.environ.get("PYTHONPATH", "")])
    run_python(
        ELSEWHERE,
        OLDEST,
        str(here),
        str(there),
        *KINDS,
        env={"PYTHONPATH": paths + os.pathsep + str(Path(__file__).parents[2])},
        timeout=280,
    )
    for kind, model in models.items():
        torch.testing.assert_close(torch.load(there / f"{kind}.pt"), logits(model), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(loaded(there / kind, kind)), logits(model), rtol=1e-4, atol=1e-5)
