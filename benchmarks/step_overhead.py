"""What stages cost for each update: StagedTrainer with one stage against Trainer, and Trainer against itself.

Two trainers in two threads take turns, one update each, so that noise on the machine affects both alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time

from transformers import Trainer, TrainerCallback

from benchmarks.common import arguments, llama, say, spread, tokens
from hf_stages import Stage, StagedTrainer

WARM = 5


class Turns(TrainerCallback):
    """Lets two trainers take turns. A turn lasts from the end of one update to the end of the next."""

    def __init__(self, mine: threading.Semaphore, theirs: threading.Semaphore) -> None:
        self.mine, self.theirs = mine, theirs
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.mine.acquire()
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)
        self.theirs.release()
        if len(self.seconds) < state.max_steps:
            self.mine.acquire()
        self.began = time.perf_counter()


def build(kind: str, turns: Turns, options: argparse.Namespace, out: str) -> Trainer:
    given = {"train_dataset": tokens(1024, options.length), "callbacks": [turns]}
    model = llama(options.hidden, options.layers)
    if kind == "staged":
        return StagedTrainer(model, arguments(out), stages=[Stage("one", f"{options.steps} steps")], **given)
    return Trainer(model, arguments(out, max_steps=options.steps), **given)


def pair(kinds: tuple[str, str], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Give the seconds of each update of two trainers that take turns."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    turns = Turns(first, second), Turns(second, first)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        trainers = [build(*parts, options, out) for *parts, out in zip(kinds, turns, (a, b), strict=True)]
        threads = [threading.Thread(target=trainer.train) for trainer in trainers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return turns[0].seconds[WARM:], turns[1].seconds[WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    ours, same, steps = [], [], []
    for _ in range(options.rounds):
        plain, staged = pair(("plain", "staged"), options)
        one, other = pair(("plain", "plain"), options)
        ours.append(statistics.median(s / p for p, s in zip(plain, staged, strict=True)))
        same.append(statistics.median(o / p for p, o in zip(one, other, strict=True)))
        steps += plain
    say(
        "step_overhead",
        step_ms=round(1e3 * statistics.median(steps), 3),
        ratio_to_trainer=spread(ours),
        trainer_to_itself=spread(same),
        target="<= 1.01",
    )


if __name__ == "__main__":
    main()
