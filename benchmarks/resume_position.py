"""How long a map-style source of 10 million examples takes to its first batch after a resume, early and late."""

from __future__ import annotations

import argparse
import time

from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.common import say
from hf_stages.data.drawing.order import SeededDataset, StageSampler, shuffled


class Numbers(Dataset):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


def ours(rows: int, batch: int, step: int) -> float:
    sampler = StageSampler(rows, shuffled(rows, seed=1))
    loader = DataLoader(SeededDataset(Numbers(rows), 1), batch_size=batch, sampler=sampler)
    began = time.perf_counter()
    sampler.at(0, step * batch)
    next(iter(loader))
    return time.perf_counter() - began


def trainers(rows: int, batch: int, step: int) -> float:
    """Do what Trainer does: accelerate draws a permutation of all rows and skips the first batches."""
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(Numbers(rows), batch_size=batch, sampler=RandomSampler(range(rows))))
    began = time.perf_counter()
    next(iter(skip_first_batches(loader, step)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    steps = [1, 1_000, 100_000, options.rows // options.batch - 2]
    ours(1000, 8, 1)
    mine = {step: min(ours(options.rows, options.batch, step) for _ in range(5)) for step in steps}
    theirs = {step: trainers(options.rows, options.batch, step) for step in steps}
    say(
        "resume_position",
        rows=options.rows,
        first_batch_s={str(k): round(v, 6) for k, v in mine.items()},
        trainer_first_batch_s={str(k): round(v, 3) for k, v in theirs.items()},
        growth_first_to_last=round(mine[steps[-1]] / mine[steps[0]], 2),
        target="< 1 s, growth about 1",
    )


if __name__ == "__main__":
    main()
