"""Peak memory and time of LogitKL at a large vocabulary, compared with the loss written plainly.

Both sides start from the states that enter the output heads of student and teacher, and end with the gradients of the
student's states and head. The plain side computes both models' logits, log_softmax, kl_div and backward. Each memory is
that of a fresh process. Times are taken in turns in one process, whose memory has been touched. Processor time (all
threads) is shown beside the clock's, because other programs disturb it less.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from benchmarks.common import say, spread
from hf_stages.losses import LogitKL
from hf_stages.models.signals import Head, Signals

GIB = 2**30


class Sides:
    """Holds states and heads of a student and a teacher, and runs forward and backward each way."""

    def __init__(self, rows: int, length: int, hidden: int, vocab: int) -> None:
        torch.manual_seed(0)
        self.batch = {"labels": torch.randint(vocab, (rows, length)), "attention_mask": torch.ones(rows, length)}
        self.ours, self.theirs = (torch.randn(rows, length, hidden) for _ in range(2))
        self.head, self.teacher = (nn.Linear(hidden, vocab, bias=False) for _ in range(2))
        self.teacher.requires_grad_(False)
        self.ours.requires_grad_()

    def chunked(self) -> torch.Tensor:
        loss, signals = LogitKL(), (Signals(captured={"head": Head(*pair)}) for pair in self._pairs())
        value = loss(*signals, self.batch, 0.0) / loss.items(self.batch)
        value.backward()
        return value

    def plain(self) -> torch.Tensor:
        logits = self.head(self.ours).flatten(0, 1)
        with torch.no_grad():
            wanted = log_softmax(self.teacher(self.theirs).flatten(0, 1), -1)
        value = kl_div(log_softmax(logits, -1), wanted, reduction="batchmean", log_target=True)
        value.backward()
        return value

    def _pairs(self) -> tuple[tuple[torch.Tensor, nn.Module], tuple[torch.Tensor, nn.Module]]:
        return (self.ours, self.head), (self.theirs, self.teacher)

    def step(self, way: str) -> tuple[float, float]:
        """Give the seconds by the clock and of the processor."""
        self.ours.grad = self.head.weight.grad = None
        clock, processor = time.perf_counter(), time.process_time()
        getattr(self, way)()
        return time.perf_counter() - clock, time.process_time() - processor


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure, in this process, how far one step raises the peak above states and heads."""
    sides = Sides(options.rows, options.length, options.hidden, options.vocab)
    before = resident()
    sides.step(way)
    return {"gib": (resident() - before) / GIB}


def in_fresh_process(way: str, options: argparse.Namespace) -> float:
    sizes = [f"--{key}={getattr(options, key)}" for key in ("rows", "length", "hidden", "vocab")]
    command = [sys.executable, "-m", "benchmarks.logit_memory", f"--memory-of={way}", *sizes]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])["gib"]


def seconds(rows: int, length: int, options: argparse.Namespace, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Time both ways in turns; the first turn does not count."""
    sides = Sides(rows, length, options.hidden, options.vocab)
    taken: dict[str, list[tuple[float, float]]] = {"plain": [], "chunked": []}
    for turn in range(rounds + 1):
        for way in taken:
            took = sides.step(way)
            if turn:
                taken[way].append(took)
    return taken


def summary(taken: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for i, kind in enumerate(("clock", "processor")):
        times = {way: [took[i] for took in all_taken] for way, all_taken in taken.items()}
        found[f"{kind}_s"] = {way: round(spread(values)["median"], 2) for way, values in times.items()}
        ratios = [chunked / plain for chunked, plain in zip(times["chunked"], times["plain"], strict=True)]
        found[f"{kind}_ratio"] = {key: round(value, 3) for key, value in spread(ratios).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=("plain", "chunked"))
    options = parser.parse_args()
    if options.memory_of:
        return print(json.dumps(memory(options.memory_of, options)))
    peaks = {way: in_fresh_process(way, options) for way in ("plain", "chunked")}
    large = seconds(options.rows, options.length, options, options.rounds)
    small = seconds(1, 256, options, 3 * options.rounds)
    say(
        "logit_memory",
        tokens=options.rows * options.length,
        vocab=options.vocab,
        hidden=options.hidden,
        peak_gib={way: round(peak, 3) for way, peak in peaks.items()},
        peak_ratio=round(peaks["chunked"] / peaks["plain"], 3),
        **summary(large),
        at_256_tokens=summary(small),
        target="peak <= 0.25, time <= 1.15; at 256 tokens <= 1",
    )


if __name__ == "__main__":
    main()
