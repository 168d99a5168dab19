"""Incidents are recorded without a trace in the training, once each, at most ten a stage, and again after a cut."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from hf_stages import Stage
from hf_stages.core.stops import RunInterrupted
from hf_stages.data import Mixture
from hf_stages.losses import LogitKL, Loss, TaskLoss
from hf_stages.monitors import RunHealth
from hf_stages.reports.incidents import read_incident, read_incidents
from hf_stages.training.incidents.incidents import MOST
from tests.support import tiny
from tests.support.poisoned import LEARNS, RecordFrom, check_named, poisoned_data
from tests.support.runs import staged
from tests.support.sameness import TIMED
from tests.workers.cases import Pad

DATA = {"a": tiny.lm_data(30, 8), "b": tiny.lm_data(12, 5, seed=1)}
MIXED = Mixture({"a": 0.5, "b": 0.5})


class RecordAt(TrainerCallback):
    """Records an incident after some updates, as a detector would, and may stop the run."""

    def __init__(self, steps, stop_at=None, **given):
        self.steps, self.stop_at, self.given, self.trainer = steps, stop_at, given, None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.trainer._stage.gates.incidents.record("a test", by="Test", **self.given)
        if state.global_step == self.stop_at:
            self.trainer.request_stop("here")


def run(out, steps=(), *, resume=False, stage=None, model=None, stop_at=None, given=None, **options):
    callback = RecordAt(steps, stop_at, **(given or {}))
    options.setdefault("train_dataset", DATA)
    stages = [Stage("one", "9 steps", train_dataset=MIXED, **(stage or {}))]
    args = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    trainer = staged(
        out, stages, args=args, data_collator=Pad(), callbacks=[callback],
        model=model or tiny.llama(attention_dropout=0.2), **options,
    )  # fmt: skip
    callback.trainer = trainer
    if stop_at is None:
        trainer.train(resume_from_checkpoint=resume)
    else:
        with pytest.raises(RunInterrupted):
            trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(mine, theirs):
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


WITHOUT_TRACE = {
    "watched": {"stage": {"monitors": [RunHealth()]}},
    "taught": {"stage": {"loss": TaskLoss() + LogitKL()}, "teacher": tiny.llama(seed=5)},
}


@pytest.mark.parametrize("options", WITHOUT_TRACE.values(), ids=WITHOUT_TRACE.keys())
def test_recording_leaves_no_trace_in_the_training(tmp_path, options):
    plain, recorded = run(tmp_path / "plain", **options), run(tmp_path / "recorded", (1, 4, 5, 9), **options)
    assert same(weights(recorded), weights(plain))
    assert untimed(recorded) == untimed(plain)
    assert len(read_incidents(tmp_path / "recorded")) == 4


def untimed(trainer):
    timed = (*TIMED, "memory_gib", "data_wait")
    return [{k: v for k, v in log.items() if not k.endswith(timed)} for log in trainer.state.log_history]


def test_rows_have_their_own_losses_and_the_batch_is_their_mean(tmp_path):
    """The rows of an update, measured with the weights from before it, give the loss that was logged for it."""
    trainer = run(tmp_path, (5,), given={"update": 6}, model=tiny.llama())
    assert not read_incidents(tmp_path), "update 6 had not begun yet"
    found = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 5:
                trainer._stage.gates.incidents.record("a test", by="Test", update=6)

    out = tmp_path / "again"
    trainer = staged(
        out, [Stage("one", "9 steps", train_dataset=MIXED)], data_collator=Pad(), train_dataset=DATA,
        args={"gradient_accumulation_steps": 2}, callbacks=[Watch()],
    )  # fmt: skip
    trainer.train()
    (incident,) = read_incidents(out)
    logged = next(log["loss"] for log in trainer.state.log_history if log["step"] == 6)
    found = [(row.loss, row.tokens) for row in incident.rows]
    assert len(found) == 8
    batch_mean = sum(loss * (tokens - 1) for loss, tokens in found) / sum(tokens - 1 for _, tokens in found)
    assert batch_mean == pytest.approx(logged, rel=0.02)
    assert incident.step == 6


def test_a_run_that_was_cut_records_what_an_uncut_one_does(tmp_path):
    run(tmp_path / "whole", (3, 6))
    run(tmp_path / "cut", (3, 6), stop_at=5)
    run(tmp_path / "cut", (3, 6), resume=True)
    for step in (3, 6):
        mine, theirs = (
            (tmp_path / name / "_private" / "incidents" / f"step-{step}.jsonl") for name in ("cut", "whole")
        )
        assert mine.read_text() == theirs.read_text()
    notes = [
        [e for e in json.loads((tmp_path / name / "run.json").read_text())["ledger"] if e["kind"] == "incident"]
        for name in ("cut", "whole")
    ]
    assert notes[0] == notes[1]
    assert [entry["step"] for entry in notes[0]] == [3, 6]


def test_at_most_ten_incidents_of_a_stage_are_written_and_the_last_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_stages.training.incidents.incidents.MOST", 3)
    run(tmp_path, range(1, 10), given={"before": False})
    ledger = json.loads((tmp_path / "run.json").read_text())["ledger"]
    notes = [entry["reason"] for entry in ledger if entry["kind"] == "incident"]
    assert len(notes) == len(read_incidents(tmp_path)) == 3
    assert "the stage has 3 now" in notes[-1]
    assert MOST == 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_stages.training.incidents.rebuilding.save_file", full)
    run(tmp_path, (2,))
    (note,) = [e for e in json.loads((tmp_path / "run.json").read_text())["ledger"] if e["kind"] == "incident"]
    assert "it could not be written: " in note["reason"]
    assert not read_incidents(tmp_path)


def test_a_row_that_gives_nan_is_named_with_its_source(tmp_path):
    @dataclass(frozen=True)
    class Odd(Loss):
        """NaN for rows that hold the token 60."""

        needs = frozenset({"logits"})

        def items(self, batch):
            return batch["labels"].ne(-100).sum()

        def __call__(self, student, teacher, batch, t):
            value = student.logits.float().logsumexp(-1).sum()
            return torch.where(batch["input_ids"].eq(60).any(), value * math.nan, value) * 0.0 + value

    rows = {name: [row["input_ids"] for row in data] for name, data in DATA.items()}
    with pytest.raises(ValueError, match="its value is nan"):
        run(tmp_path, stage={"loss": Odd()})
    (incident,) = read_incidents(tmp_path)
    assert incident.standing_out
    assert all(math.isnan(row.loss) for row in incident.standing_out)
    for row in incident.rows:
        ids = rows[row.examples[0]["source"]][row.examples[0]["index"]]
        assert row.stands_out == (60 in ids)


def test_a_stage_that_begins_anew_removes_what_an_attempt_before_recorded(tmp_path):
    run(tmp_path, (2,), stop_at=3)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        checkpoint.rename(tmp_path / f"gone-{checkpoint.name}")
    assert [one.step for one in read_incidents(tmp_path)] == [2]
    run(tmp_path, (7,), resume=True)
    assert [one.step for one in read_incidents(tmp_path)] == [7]


def test_the_text_of_a_row_is_the_datasets_own_or_decoded(tmp_path):
    data = DATA["a"].add_column("text", [f"row {i}" for i in range(30)])
    run(tmp_path / "own", (2,), train_dataset={"a": data, "b": DATA["b"]}, processing_class=tiny.tokenizer())
    incident = read_incident(tmp_path / "own" / "_private" / "incidents" / "step-2.jsonl")
    for row in incident.rows:
        example = row.examples[0]
        ids = DATA[example["source"]][example["index"]]["input_ids"]
        own = f"row {example['index']}"
        assert row.text == (own if example["source"] == "a" else tiny.tokenizer().decode(ids))


def test_poisoned_rows_of_a_mixture_are_named(tmp_path):
    """Over epochs, in two micro-batches: garbage rows, and rows with other labels."""
    data, spoilt = poisoned_data()
    callback = RecordFrom(28)
    stages = [Stage("one", "34 steps", train_dataset=Mixture({"web": 0.6, "books": 0.4}))]
    args = {**LEARNS, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    trainer = staged(tmp_path, stages, args=args, callbacks=[callback], train_dataset=data)
    callback.trainer = trainer
    trainer.train()
    incidents = read_incidents(tmp_path)
    assert len(incidents) == 6
    check_named(incidents, spoilt)
