"""What an incident costs: its rows measured one by one and written down, against an update; and holding micro-batches.

A run without incidents pays only for the latter: references to the micro-batches of two updates.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from transformers import TrainerCallback

from benchmarks.common import arguments, llama, say, tokens
from hf_stages import Stage, StagedTrainer
from hf_stages.training.stage.kept_updates import KeptUpdates

WARM, RECORDED = 5, 5


class Clock(TrainerCallback):
    """Times each update, and records every fourth one before it is stepped."""

    trainer: StagedTrainer

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.incidents: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.recording, self.began = 0.0, time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step >= WARM and state.global_step % 4 == 0 and len(self.incidents) < RECORDED:
            began, stage = time.perf_counter(), self.trainer._stage
            stage.gates.incidents.record("a benchmark", update=stage.progress.steps + 1)
            self.recording = time.perf_counter() - began
            self.incidents.append(self.recording)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= WARM:
            self.updates.append(time.perf_counter() - self.began - self.recording)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        args = arguments(out, per_device_train_batch_size=options.batch)
        data = tokens(1024, options.length)
        stages = [Stage("one", f"{WARM + 4 * RECORDED + 5} steps")]
        model = llama(options.hidden, options.layers)
        clock.trainer = StagedTrainer(model, args, stages=stages, train_dataset=data, callbacks=[clock])
        clock.trainer.train()
        written = sum(path.stat().st_size for path in Path(out, "_private").rglob("*.*"))
    kept, began = KeptUpdates(2), time.perf_counter()
    batch = dict.fromkeys(("input_ids", "attention_mask", "labels"))
    for number in range(1000):
        kept.keep(number, 0, number, 0.0, [batch])
    holding = (time.perf_counter() - began) / 1000
    update, incident = statistics.median(clock.updates), statistics.median(clock.incidents)
    say(
        "incident_cost",
        rows=options.batch,
        update_ms=round(1e3 * update, 3),
        incident_ms=round(1e3 * incident, 3),
        incident_to_update=round(incident / update, 3),
        holding_to_update=round(holding / update, 6),
        megabytes_an_incident=round(written / len(clock.incidents) / 1e6, 3),
    )


if __name__ == "__main__":
    main()
