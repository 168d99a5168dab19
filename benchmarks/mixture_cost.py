"""What it costs to draw from a ramp over 100 million examples: memory, the first batch after a resume, time for each
position.

It also compares a mixture's loader with Trainer's own over the same rows, with the same collator, beside a training
step.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.common import llama, say
from hf_stages.core.curves import Linear
from hf_stages.data import Mixture
from hf_stages.data.drawing.blend import make_blend
from hf_stages.data.drawing.drawn_rows import DrawnRows, Positions


class Rows(Dataset):
    def __init__(self, rows: int, tokens: int = 128) -> None:
        self.rows, self.row = rows, {"input_ids": list(range(tokens))}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict:
        return self.row


def ramp(rows: int, draws: int):
    sources = {"language": Rows(int(rows * 0.6)), "code": Rows(int(rows * 0.3)), "tools": Rows(int(rows * 0.1))}
    part = Mixture({"language": Linear(1, 0.3), "code": Linear(0, 0.5), "tools": Linear(0, 0.2)}, sources)
    return make_blend(part, lambda name, where: None, "benchmark").bind(draws, 1)


def first_batch(rows: int, draws: int, batch: int, step: int) -> float:
    """Build everything as a resumed process does: the tree, the loader, the batch."""
    began = time.perf_counter()
    sampler = Positions(draws)
    loader = DataLoader(
        DrawnRows(ramp(rows, draws), 1, draws, "source"), batch_size=batch, sampler=sampler, collate_fn=len
    )
    sampler.at(0, step * batch)
    next(iter(loader))
    return time.perf_counter() - began


def memory(rows: int, draws: int) -> int:
    tracemalloc.start()
    held = ramp(rows, draws)
    held.at(np.arange(draws // 2, draws // 2 + 4096))
    found = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return found


def per_position(rows: int, draws: int, count: int, chunk: int) -> float:
    held, at = ramp(rows, draws), draws // 2
    held.at(np.arange(chunk))
    began = time.process_time()
    for start in range(at, at + count, chunk):
        held.at(np.arange(start, start + chunk))
    return (time.process_time() - began) / count * 1e9


def per_batch(loader: DataLoader, batches: int) -> float:
    reader = iter(loader)
    next(reader)
    began = time.process_time()
    for _ in range(batches):
        next(reader)
    return (time.process_time() - began) / batches


def step_seconds(batch: int, tokens: int = 128) -> tuple[float, float]:
    """Give millions of weights and processor seconds of a training step of a model of ten million weights."""
    model = llama(hidden=384, layers=6)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    times = []
    for _ in range(3):
        began = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        times.append(time.process_time() - began)
    return sum(p.numel() for p in model.parameters()) / 1e6, min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    draws = 2_000_000 * options.batch
    first = {
        step: min(first_batch(options.rows, draws, options.batch, step) for _ in range(3)) for step in (0, 1_000_000)
    }
    used = memory(options.rows, draws)
    few = ramp(100_000, draws)
    ours = DataLoader(
        DrawnRows(few, 1, draws, "source"), batch_size=options.batch, sampler=Positions(draws), collate_fn=len
    )
    plain = Rows(100_000)
    theirs = DataLoader(plain, batch_size=options.batch, sampler=RandomSampler(plain), collate_fn=len)
    mine, other = (min(per_batch(loader, 300) for _ in range(3)) for loader in (ours, theirs))
    millions, step = step_seconds(options.batch)
    say(
        "mixture_cost",
        rows=options.rows,
        index_bytes=used,
        index_bytes_per_example=round(used / options.rows, 5),
        first_batch_s={str(step): round(seconds, 4) for step, seconds in first.items()},
        ns_per_position={str(c): round(per_position(options.rows, draws, 64 * 512, c)) for c in (64, 4096)},
        cpu_ms_per_batch={"mixture": round(mine * 1e3, 3), "random": round(other * 1e3, 3)},
        batch=options.batch,
        model_millions=round(millions, 1),
        cpu_ms_per_step=round(step * 1e3),
        share_of_step=round(mine / step, 6),
        target="<= 1 byte per example, < 1 s, <= 1 % of a step",
    )


if __name__ == "__main__":
    main()
