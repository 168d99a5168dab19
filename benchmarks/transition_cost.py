"""What a boundary between stages costs, compared with its bound: writing and reading model and moments once."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from benchmarks.common import arguments, llama, say, spread, tokens
from hf_stages import Stage, StagedTrainer
from hf_stages.schedules import Resume


def touch_memory(gib: int = 3) -> None:
    """Touch memory before both sides start: a virtual machine provides it at first touch, slower than a disk writes."""
    torch.ones(gib * 2**28)


class Boundary(TrainerCallback):
    """Measure from the last update of a stage to the first one of the next, without that update itself."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.begins: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begins.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        touch_memory()
        self.ends.append(time.perf_counter())


def boundary_seconds(model, data, out: str) -> float:
    watch = Boundary()
    stages = [Stage("a", "3 steps"), Stage("b", "3 steps", schedule=Resume())]
    StagedTrainer(model, arguments(out), stages=stages, train_dataset=data, callbacks=[watch]).train()
    return watch.begins[3] - watch.ends[2]


def bound_seconds(model, out: str) -> float:
    """Save and load weights and two moments, written through to the disk as a boundary is, and nothing else."""
    touch_memory()
    began = time.perf_counter()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    model.save_pretrained(out)
    save_file({f"{n}.{m}": t.clone() for n, t in weights.items() for m in ("exp_avg", "exp_avg_sq")}, f"{out}/moments")
    for path in Path(out).iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    for path in [*Path(out).glob("*.safetensors"), Path(out) / "moments"]:
        for tensor in load_file(path).values():
            tensor.clone()  # load_file only maps the file; this reads it
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=768)
    options = parser.parse_args()
    model, data = llama(options.hidden, layers=8, vocab=16384), tokens(64, 16)
    ours, bounds = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as out:
            bounds.append(bound_seconds(model, out))
        with tempfile.TemporaryDirectory() as out:
            ours.append(boundary_seconds(model, data, out))
    size = sum(p.numel() for p in model.parameters()) * 12 / 2**20
    say(
        "transition_cost",
        mib=round(size),
        boundary_s=spread(ours),
        save_and_load_s=spread(bounds),
        ratio=round(statistics.median(o / b for o, b in zip(ours, bounds, strict=True)), 3),
        target="<= 1.05",
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
