"""A bad update is run again offline: its gradient is the one that was trained on, and exact without a row, too."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_stages import OnSpike, Stage
from hf_stages.commands.cli import main
from hf_stages.data import Mixture
from hf_stages.losses import Balanced, HiddenMSE, LogitKL, LogitMSE, TaskLoss
from hf_stages.reports.incidents import read_incidents
from hf_stages.training.incidents.rebuilt_stage import RebuiltStage
from hf_stages.training.incidents.replay import replay_incident
from hf_stages.transforms import AddLora, Ternarize
from tests.support import tiny
from tests.support.runs import staged
from tests.workers.cases import Pad

DATA = {"a": tiny.lm_data(30, 8), "b": tiny.lm_data(12, 5, seed=1)}
MIXED = Mixture({"a": 0.5, "b": 0.5})


class RecordBefore(TrainerCallback):
    """Records the update at hand before it is stepped, as where it is found bad."""

    def __init__(self, step):
        self.step, self.trainer = step, None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.trainer._stage.gates.incidents.record(
                "a test", by="Test", update=self.trainer._stage.progress.steps + 1
            )


def recorded(out, stages, step, *, save_steps=None, **options):
    callback = RecordBefore(step)
    options.setdefault("train_dataset", DATA)
    args = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    if save_steps is not None:
        args |= {"save_strategy": "steps", "save_steps": save_steps}
    trainer = staged(out, stages, args=args, data_collator=Pad(), callbacks=[callback], **options)
    callback.trainer = trainer
    trainer.train()
    (incident,) = read_incidents(out)
    logged = next(log for log in trainer.state.log_history if log["step"] == step)
    return incident, logged


KINDS = {
    "task": {},
    "taught": {"loss": TaskLoss() + 0.5 * LogitKL(), "teacher": "stage:start"},
    "projected": {"loss": TaskLoss() + HiddenMSE(layers={2: 2}), "teacher": "stage:start"},
    "balanced": {"loss": Balanced(TaskLoss() + LogitMSE()), "teacher": "stage:start"},
    "quantized": {"transforms": [Ternarize()]},
    "lora": {"transforms": [AddLora(r=2, target_modules=["q_proj"])]},
    "by-source": {"loss": {"a": TaskLoss(), "b": 0.5 * TaskLoss()}},
}


SLOW = ("projected", "lora", "by-source")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in KINDS])
def test_the_replayed_update_is_the_one_that_was_trained(tmp_path, kind):
    stages = [
        Stage("start", "2 steps", train_dataset=MIXED),
        Stage("one", "5 steps", train_dataset=MIXED, **KINDS[kind]),
    ]
    incident, logged = recorded(tmp_path, stages, 5)
    replay = replay_incident(tmp_path, incident)
    assert replay.loss == pytest.approx(logged["loss"], rel=2e-4)
    assert replay.grad_norm == pytest.approx(logged["grad_norm"], rel=2e-3)
    assert replay.weights == "those that the rows were measured with"


def test_the_gradient_without_a_row_is_that_of_the_other_rows(tmp_path):
    incident, _ = recorded(tmp_path, [Stage("one", "5 steps", train_dataset=MIXED)], 4)
    replay = replay_incident(tmp_path, incident, most=3)
    model = RebuiltStage.make(tmp_path, incident).model.eval()
    assert len(replay.rows) == 3
    for one in replay.rows:
        left = [row for row in incident.rows if row is not one.row]
        rows = [DATA[row.examples[0]["source"]][row.examples[0]["index"]]["input_ids"] for row in left]
        items = sum(len(row) - 1 for row in rows)
        model.zero_grad()
        for row in rows:
            ids = torch.tensor([row])
            (model(input_ids=ids, labels=ids).loss * (len(row) - 1) / items).backward()
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        assert one.grad_norm_without == pytest.approx(norm.item(), rel=1e-3)


def test_an_update_without_a_label_is_replayed_as_nan(tmp_path):
    ids = list(range(1, 9))
    data = Dataset.from_list([{"input_ids": ids, "labels": ids if i < 4 else [-100] * 8} for i in range(12)])
    stage = Stage("one", "3 steps", train_dataset=data, gates=[OnSpike(skip=3)])
    staged(tmp_path, [stage], args={"train_sampling_strategy": "sequential"}).train()
    incident = read_incidents(tmp_path)[0]
    assert "no row of the update has a target" in incident.summary()
    replay = replay_incident(tmp_path, incident)
    assert math.isnan(replay.loss)
    assert math.isnan(replay.grad_norm)


def test_without_kept_weights_the_newest_checkpoint_before_serves(tmp_path):
    stages = [Stage("start", "2 steps", train_dataset=MIXED), Stage("one", "6 steps", train_dataset=MIXED)]
    incident, logged = recorded(tmp_path, stages, 7, save_steps=3)
    kept = tmp_path / "_private" / "incidents" / "step-7.weights.safetensors"
    kept.unlink()
    replay = replay_incident(tmp_path, incident)
    assert "checkpoint-6" in replay.weights
    assert replay.loss == pytest.approx(logged["loss"], rel=2e-4), "no update lies between"
    for folder in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert "01-start" in replay_incident(tmp_path, incident).weights
    shutil.rmtree(tmp_path / "01-start")
    with pytest.raises(ValueError, match=r"no weights to replay step 7 with.*Save checkpoints"):
        replay_incident(tmp_path, incident)


def test_a_teacher_that_was_an_object_is_left_out_and_said(tmp_path):
    stages = [Stage("one", "4 steps", train_dataset=MIXED, loss=LogitKL())]
    incident, _ = recorded(tmp_path, stages, 3, teacher=tiny.llama(seed=5))
    replay = replay_incident(tmp_path, incident)
    assert any("without the terms that compare with a teacher" in note for note in replay.notes)
    assert any("by the model's own loss" in note for note in replay.notes)


def test_the_command_lists_shows_and_replays(tmp_path, capsys):
    out = tmp_path / "out"
    recorded(out, [Stage("one", "5 steps", train_dataset=MIXED)], 4)
    capsys.readouterr()
    assert main(["incident", str(out)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[1].split()[:4] == ["4", "one", "Test", "8"]
    assert main(["incident", str(out), "4", "--rows", "3"]) == 0
    shown = capsys.readouterr().out
    assert "step 4, stage 'one', noticed by Test: a test" in shown
    assert "and 5 more (--rows 8)" in shown
    assert shown.count("without row") == 5
    assert main(["incident", str(out), "4", "--json", "--without", "2"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["rows"]) == 8
    assert [row["examples"] for row in data["replay"]["rows"]] == [row["examples"] for row in data["rows"][:2]]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["incident", str(tmp_path / "nothing")]) == 2
    assert "expected a run's folder" in capsys.readouterr().err
    out = tmp_path / "out"
    recorded(out, [Stage("one", "5 steps", train_dataset=MIXED)], 4)
    assert main(["incident", str(out), "5"]) == 2
    assert "no incident was recorded at step 5; there are 4" in capsys.readouterr().err
    (out / "_private" / "incidents" / "step-4.batches.safetensors").unlink()
    assert main(["incident", str(out), "4"]) == 2
    found = capsys.readouterr()
    assert "row" in found.out, "the rows are shown even where they cannot be replayed"
    assert "too large to be kept" in found.err
    assert main(["incident", str(out), "4", "--no-replay"]) == 0
    assert main(["incident", str(out), "4", "--rows", "-1"]) == 2
