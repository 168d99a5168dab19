"""What a rollback costs against its bound, and what judging each update costs.

The bound of a rollback is loading its state by hand: ``torch.load``, weights and buffers copied into the model, moments
given to the optimizer. An update under ``OnSpike`` takes turns with one of the same trainer without it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.common import arguments, llama, say, spread, tokens
from benchmarks.step_overhead import WARM, Turns
from hf_stages import CutRate, OnSpike, Rollback, Stage, StagedTrainer
from hf_stages.training.stage.rollback_states import RollbackStates


class AfterUpdates(TrainerCallback):
    """Measures within a run, where model, optimizer and states are as they train."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.trainer: Any = None
        self.ours: list[float] = []
        self.bounds: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < 2:
            return
        trainer = self.trainer
        states: RollbackStates = trainer._stage.gates.rollbacks.states
        states.save(1, {}, {0})
        for turn in range(self.rounds):
            for way in (self._ours, self._bound) if turn % 2 else (self._bound, self._ours):
                way(trainer, states)

    def _ours(self, trainer: Any, states: RollbackStates) -> None:
        began = time.perf_counter()
        states.go_back(1)
        self.ours.append(time.perf_counter() - began)

    def _bound(self, trainer: Any, states: RollbackStates) -> None:
        began = time.perf_counter()
        state = torch.load(next((states.folder / "1").glob("*.pt")), map_location="cpu", weights_only=True)
        with torch.no_grad():
            own = dict(trainer.model.named_parameters()) | {f"buffer {n}": b for n, b in trainer.model.named_buffers()}
            for name, tensor in state["weights"].items():
                own[name].copy_(tensor)
        trainer.optimizer.load_state_dict(state["optimizer"])
        self.bounds.append(time.perf_counter() - began)


def rollbacks(options: argparse.Namespace) -> AfterUpdates:
    watch = AfterUpdates(options.rounds)
    with tempfile.TemporaryDirectory() as out:
        stage = Stage("one", "3 steps", gates=[OnSpike(then=Rollback(2))])
        model = llama(options.hidden, layers=8, vocab=16384)
        given = {"train_dataset": tokens(64, 16), "callbacks": [watch]}
        watch.trainer = StagedTrainer(model, arguments(out), stages=[stage], **given)
        watch.trainer.train()
    return watch


def updates(gates: tuple[Any, Any], steps: int) -> float:
    """Return how long an update takes with the second gate, where one with the first takes 1."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    turns = Turns(first, second), Turns(second, first)
    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for name, gate, turn in zip("ab", gates, turns, strict=True):
            stage = Stage("one", f"{steps} steps", gates=[gate] if gate is not None else [])
            args = arguments(str(Path(folder) / name))
            given = {"train_dataset": tokens(1024, 64), "callbacks": [turn]}
            trainer = StagedTrainer(llama(256, 4), args, stages=[stage], **given)
            threads.append(threading.Thread(target=trainer.train))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    pairs = zip(turns[0].seconds[WARM:], turns[1].seconds[WARM:], strict=True)
    return statistics.median(judged / plain for plain, judged in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=768)
    options = parser.parse_args()
    back = rollbacks(options)
    gate = OnSpike(then=[CutRate(0.5)])
    say(
        "rollback_cost",
        rollback_s=spread(back.ours),
        load_s=spread(back.bounds),
        rollback_to_load=round(statistics.median(o / b for o, b in zip(back.ours, back.bounds, strict=True)), 3),
        judged_update_to_plain=spread([updates((None, gate), options.steps) for _ in range(3)]),
        plain_update_to_itself=spread([updates((None, None), options.steps) for _ in range(3)]),
        target="rollback <= 1.05",
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
