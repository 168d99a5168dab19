"""An evaluation at depths 1 to 64, against one evaluation at 64 alone and one at each depth by itself.

Times are processor time over all threads; all ways take turns. ``of_deepest`` is the time of the evaluation at all
depths over that at 64 cycles alone: beside those it runs prelude and coda at five other depths, and the model at its
own depth. ``of_separate`` is the same over evaluations at each depth by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from typing import Any

from benchmarks.common import arguments, llama, say, tokens
from hf_stages import AtDepths, MakeRecurrent, Stage, StagedTrainer
from hf_stages.layers import at_depth

DEPTHS = (1, 4, 8, 16, 32, 64)


def seconds(trainer: Any, dataset: Any, depth: int | None = None) -> float:
    fixed = contextlib.nullcontext() if depth is None else at_depth(trainer.model, depth)
    with fixed:
        began = time.process_time()
        trainer.evaluate(dataset)
        return time.process_time() - began


def main(hidden: int, rows: int, length: int, repeats: int) -> dict[str, float]:
    model = MakeRecurrent(1, 2, 1, mean_depth=4)(llama(hidden=hidden))
    data = tokens(rows, length)
    with tempfile.TemporaryDirectory() as out:
        args = arguments(out, per_device_eval_batch_size=8)
        trainer = StagedTrainer(model, args, train_dataset=data, stages=[Stage("none", "1 steps")])
        seconds(trainer, AtDepths(data, DEPTHS))  # warm up
        together, apart = [], []
        for _ in range(repeats):
            together.append(seconds(trainer, AtDepths(data, DEPTHS)))
            apart.append([seconds(trainer, data, depth) for depth in DEPTHS])
    deepest = statistics.median(turn[-1] for turn in apart)
    return {
        "seconds": statistics.median(together),
        "of_deepest": statistics.median(together) / deepest,
        "of_separate": statistics.median(together) / statistics.median(map(sum, apart)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"--hidden": 256, "--rows": 8, "--length": 128, "--repeats": 3}.items():
        parser.add_argument(name, type=int, default=value)
    options = vars(parser.parse_args())
    say("depth_evaluation", **options, **main(**options))
