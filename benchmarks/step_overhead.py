"""What stages cost per update: StagedTrainer with one stage against Trainer, and Trainer against itself (A/A)."""

from __future__ import annotations

import argparse
import statistics
import tempfile

from transformers import Trainer

from benchmarks.common import StepTimes, arguments, llama, say, spread, tokens
from hf_stages import Stage, StagedTrainer


def median_step(kind: str, model, data, steps: int) -> float:
    """The median step of one short run. The model is shared: both trainers do the same work on the same weights."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as out:
        options = {"train_dataset": data, "callbacks": [times]}
        if kind == "staged":
            trainer = StagedTrainer(model, arguments(out), stages=[Stage("one", f"{steps} steps")], **options)
        else:
            trainer = Trainer(model, arguments(out, max_steps=steps), **options)
        trainer.train()
    return statistics.median(times.seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    model, data = llama(options.hidden), tokens(1024, 128)
    median_step("plain", model, data, 8)  # warm up
    ours, same, step = [], [], []
    for _ in range(options.rounds):
        # A B B A: a drift of the machine's speed cancels within a round.
        first, staged1, staged2, second = (
            median_step(k, model, data, options.steps) for k in ("plain", "staged", "staged", "plain")
        )
        ours.append((staged1 + staged2) / (first + second))
        same.append(second / first)
        step += [first, second]
    say(
        "step_overhead",
        step_ms=round(1e3 * statistics.median(step), 3),
        ratio_to_trainer=spread(ours),
        trainer_to_itself=spread(same),
        target="<= 1.01",
    )


if __name__ == "__main__":
    main()
