"""What watching a run costs: RunHealth's share of a step, the correlation of tokens a layer, and its memory.

Two trainers in two threads take turns, one update each, so that noise on the machine affects both alike. One of them
is watched and both log every ``--logging`` updates; the first updates count, where monitors are asked most often. On
a CPU each thread's own time counts, on one core; on a GPU the time on the wall. There the time within monitors is
measured too, as a share of the rest: it is free of the noise between two runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from functools import partial

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.common import arguments, llama, say, spread, tokens
from hf_stages import Stage, StagedTrainer
from hf_stages.monitors import RunHealth
from hf_stages.monitors.at_work import Monitoring
from hf_stages.monitors.state_statistics import effective_rank, state_norm, token_correlation
from hf_stages.training.stage import stage_monitors

WARM = 4
"""Updates that are left out: the first ones fill caches of the allocator."""


now = time.perf_counter if torch.cuda.is_available() else time.thread_time


class TimedMonitoring(Monitoring):
    """Adds up the time that monitors take."""

    seconds = 0.0

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in CALLS:
            return found

        def timed(*args, **kwargs):
            began = now()
            try:
                return found(*args, **kwargs)
            finally:
                TimedMonitoring.seconds += now() - began

        return timed


CALLS = (
    "begin_update",
    "micro_batch",
    "end_gradients",
    "gradient_norm",
    "before_step",
    "after_step",
    "end_update",
    "log",
)


class Turns(TrainerCallback):
    """Lets two trainers take turns. A turn lasts from the end of one update, its log included, to that of the next."""

    def __init__(self, mine: threading.Semaphore, theirs: threading.Semaphore) -> None:
        self.mine, self.theirs = mine, theirs
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.mine.acquire()
        self.began = now()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step:
            self._end()
            self.mine.acquire()
            self.began = now()

    def on_train_end(self, args, state, control, **kwargs):
        self._end()

    def _end(self) -> None:
        self.seconds.append(now() - self.began)
        self.theirs.release()


def statistics_of_states(options: argparse.Namespace, device: str) -> dict[str, float]:
    """Give milliseconds a layer of each number; on a GPU, the memory that the correlation takes, too."""
    states = torch.randn(1, options.tokens, options.width, device=device)
    real = torch.ones(1, options.tokens, device=device)
    found = {}
    without_padding = partial(token_correlation, padded=False)
    measures = {"token_correlation": without_padding, "effective_rank": effective_rank, "state_norm": state_norm}
    for name, measure in {**measures, "token_correlation_with_padding": token_correlation}.items():
        seconds = []
        for _ in range(options.rounds * 4):
            began = now()
            float(measure(states, real))
            seconds.append(now() - began)
        found[f"{name}_ms"] = round(1e3 * statistics.median(seconds[2:]), 3)
        found[f"{name}_ms_best"] = round(1e3 * min(seconds[2:]), 3)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        token_correlation(states, real)
        peak = torch.cuda.max_memory_allocated() - before
        assert peak < 4 * options.tokens**2, "as much memory as a matrix of tokens by tokens was held"
        found["peak_mib"] = round(peak / 2**20, 2)
    return found


def build(watched: bool, turns: Turns, options: argparse.Namespace, out: str) -> StagedTrainer:
    rows = tokens(512, options.length)
    stage = Stage("one", f"{options.steps} steps", monitors=[RunHealth()] if watched else [])
    logs = {"logging_strategy": "steps", "logging_steps": options.logging, "per_device_train_batch_size": options.batch}
    trainer = StagedTrainer(
        llama(options.hidden, options.layers),
        arguments(out, **logs),
        stages=[stage],
        train_dataset=rows,
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)  # a terminal is not what is measured
    return trainer


def pair(watched: tuple[bool, bool], options: argparse.Namespace) -> tuple[float, float]:
    """Give the seconds of all updates of two trainers that take turns."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    turns = Turns(first, second), Turns(second, first)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        trainers = [build(kind, turn, options, out) for kind, turn, out in zip(watched, turns, (a, b), strict=True)]
        threads = [threading.Thread(target=trainer.train) for trainer in trainers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return tuple(sum(turn.seconds[WARM:]) for turn in turns)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=44)
    parser.add_argument("--logging", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    states = statistics_of_states(options, device)
    ours, same, plain_seconds, shares = [], [], [], []
    stage_monitors.Monitoring = TimedMonitoring
    for round_ in range(options.rounds):
        kinds = (False, True) if round_ % 2 else (True, False)
        TimedMonitoring.seconds = 0.0
        seconds = dict(zip(kinds, pair(kinds, options), strict=True))
        shares.append(TimedMonitoring.seconds / (seconds[True] - TimedMonitoring.seconds))
        one, other = pair((False, False), options)
        ours.append(seconds[True] / seconds[False])
        same.append(one / other)
        plain_seconds.append(seconds[False] / (options.steps - WARM))
    say(
        "monitor_cost",
        device=device,
        step_ms=round(1e3 * statistics.median(plain_seconds), 3),
        logged_every=options.logging,
        within_monitors=spread(shares),
        ratio_to_unwatched=spread(ours),
        unwatched_to_itself=spread(same),
        target="<= 1.02; token_correlation <= 5 ms a layer",
        **states,
    )


if __name__ == "__main__":
    main()
