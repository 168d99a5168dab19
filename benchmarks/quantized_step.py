"""A training step of a one-bit BERT-base with 8-bit activations, compared with the same step in full precision.

Both sides run forward, backward and fused AdamW on the same rows, in turns, so that noise on the machine affects both.
A ratio compares a pair of steps in processor time (all threads). ``again`` measures the plain side against itself: no
ratio is more exact than that one. Each peak of memory is that of a fresh process. ``--compile`` compares both sides
under torch.compile, which needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.common import say, spread
from hf_stages.transforms import Binarize, Ternarize

GIB = 2**30
SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
WAYS = {
    "plain": lambda model: model,
    "binary": Binarize(),
    "ternary": Ternarize(),
    "weights_alone": Binarize(activations=None),
}


def stepper(way: str, options: argparse.Namespace) -> Callable[[], float]:
    """Make a training step that returns its processor time."""
    torch.manual_seed(0)
    # Without it, the model adds it in its first step, and torch.compile compiles a second time.
    config = BertConfig(**(SMALL if options.small else {}), problem_type="single_label_classification")
    model = WAYS[way](BertForSequenceClassification(config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(1000, 30000, (options.rows, options.length))
    batch = {"input_ids": ids, "labels": torch.randint(2, (options.rows,))}
    run = torch.compile(model) if options.compile else model

    def step() -> float:
        began = time.process_time()
        run(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    return step


def peak(way: str, options: argparse.Namespace) -> float:
    """Measure the peak of this process in GiB after two steps; the first one creates the optimizer's moments."""
    step = stepper(way, options)
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def in_fresh_process(way: str, options: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "benchmarks.quantized_step", f"--memory-of={way}"]
    command += [f"--rows={options.rows}", f"--length={options.length}", f"--threads={options.threads}"]
    command += ["--small"] * options.small + ["--compile"] * options.compile
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])["gib"]


def ratios(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Time pairs of steps, in both orders; the first step of each side does not count."""
    sides = [stepper(way.split()[0], options), stepper("plain", options)]
    for step in sides:
        step()
    found, plain = [], []
    for number in range(options.pairs):
        order = sides if number % 2 else sides[::-1]
        took = {step: step() for step in order}
        found.append(took[sides[0]] / took[sides[1]])
        plain.append(took[sides[1]])
    return {**{k: round(v, 3) for k, v in spread(found).items()}, "plain_s": round(spread(plain)["median"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="two narrow blocks: does it run, no more")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ways", nargs="*", default=["binary", "plain again"], choices=[*WAYS, "plain again"])
    parser.add_argument("--memory-of", choices=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.compile and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return print("left out: quantized_step --compile: torch.compile needs a C++ compiler, and there is none")
    if options.memory_of:
        return print(json.dumps({"gib": peak(options.memory_of, options)}))
    # Comes first: a child's peak starts at its parent's (Linux keeps it over exec), which is still small.
    peaks = {way: round(in_fresh_process(way, options), 3) for way in ("plain", *options.ways) if way in WAYS}
    taken = {}
    for way in options.ways:
        taken[way] = ratios(way, options)
        print(f"{way:14} {taken[way]}", flush=True)
    say(
        "quantized_step",
        tokens=options.rows * options.length,
        small=options.small,
        compiled=options.compile,
        processor_ratio=taken,
        peak_gib=peaks,
        peak_ratio={way: round(value / peaks["plain"], 3) for way, value in peaks.items() if way != "plain"},
        target="binary: processor time <= 1.10, peak <= 1.05",
    )


if __name__ == "__main__":
    main()
