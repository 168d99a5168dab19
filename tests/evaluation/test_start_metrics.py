"""A stage's start is measured only where something changed since the parent's end, and has its own tags."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

from hf_stages import Stage, StagedTrainer
from hf_stages.data import BySource, Lengths
from hf_stages.losses import LogitKL, TaskLoss
from hf_stages.schedules import Resume
from hf_stages.transforms import Freeze, ReduceLayers, Unfreeze
from hf_stages.transforms.base import Transform
from tests.support import tiny

ONE, TWO = tiny.lm_data(8, 12), tiny.lm_data(8, 12, seed=1)


class Counted(StagedTrainer):
    """Counts evaluations of single sets."""

    passes: list

    def evaluation_loop(self, *args, **kwargs):
        self.__dict__.setdefault("passes", []).append(kwargs["metric_key_prefix"])
        return super().evaluation_loop(*args, **kwargs)


def trained(out, stages, *, resume=False, cls=Counted, **given):
    args = TrainingArguments(
        str(out), per_device_train_batch_size=2, save_strategy="no", learning_rate=1e-2, report_to=[],
        disable_tqdm=True, use_cpu=True, logging_steps=1,
    )  # fmt: skip
    given = {"train_dataset": tiny.lm_data(8, 12), "eval_dataset": ONE, **given}
    trainer = cls(tiny.llama(), args, stages=stages, **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def summary(out, folder):
    return json.loads((out / folder / "stage.json").read_text())


def starts(trainer, stage=2):
    return [
        log for log in trainer.state.log_history if any(k.startswith("start_") for k in log) and log["stage"] == stage
    ]


@pytest.mark.parametrize(
    "second",
    [
        {}, {"schedule": Resume()}, {"transforms": [Freeze("embed_tokens"), Unfreeze("lm_head")]},
        {"args": {"learning_rate": 1e-3}},
    ],
    ids=["plain", "resumed schedule", "frozen", "another rate"],
)  # fmt: skip
def test_a_boundary_without_a_change_is_measured_once(second, tmp_path):
    trainer = trained(tmp_path, [Stage("a", "2 steps"), Stage("b", "1 steps", **second)])
    assert trainer.passes == ["start", "eval", "eval"]
    (log,) = starts(trainer)
    first, found = summary(tmp_path, "01-a"), summary(tmp_path, "02-b")
    assert log["start_loss"] == first["metrics"]["eval_loss"]
    assert found["boundary"]["start"] == found["boundary"]["before"]
    assert found["domains_start"] == first["domains"]
    assert not any(key.endswith(("_runtime", "_per_second")) for key in log)  # nothing ran


def test_what_is_taken_over_is_what_would_be_measured(tmp_path, monkeypatch):
    """Dropout, a wrapped model and named sets: the numbers are equal to the bit."""
    sets = {"one": ONE, "two": TWO}
    trained(tmp_path / "taken", [Stage("a", "3 steps"), Stage("b", "1 steps")], eval_dataset=sets)
    monkeypatch.setattr("hf_stages.evaluation.start_metrics._unchanged", lambda *args: {})
    trainer = trained(tmp_path / "measured", [Stage("a", "3 steps"), Stage("b", "1 steps")], eval_dataset=sets)
    assert trainer.passes.count("start_one") == 2
    taken, measured = (summary(tmp_path / name, "02-b") for name in ("taken", "measured"))
    for key in ("boundary", "domains_start", "domains"):
        assert taken[key] == measured[key]


class Doubled(Transform):
    """Keeps names and shapes, and says nothing of the function."""

    structural = False

    def __call__(self, model):
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        return model


def metric(prediction):
    return {"rows": len(prediction.label_ids)}


@pytest.mark.parametrize(
    "second",
    [
        {"transforms": [ReduceLayers([1])]},
        {"transforms": [Doubled()]},
        {"eval_dataset": TWO},
        {"eval_dataset": {"one": ONE}},
        {"compute_metrics": metric},
        {"data_collator": lambda rows: tiny_batch(rows)},
        {"loss": TaskLoss() + LogitKL(), "teacher": tiny.llama(seed=3)},
        {"args": {"per_device_eval_batch_size": 3}},
        {"parents": []},
    ],
    ids=["layers", "values", "set", "name", "metrics", "collator", "teacher", "batch", "branch"],
)
def test_what_changed_is_measured_anew(second, tmp_path):
    trainer = trained(tmp_path, [Stage("a", "1 steps"), Stage("b", "1 steps", **second)])
    assert sum(prefix.startswith("start") for prefix in trainer.passes) == 2
    assert any(key.endswith("_runtime") for log in starts(trainer) for key in log)


def tiny_batch(rows):
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


def test_a_set_that_is_new_is_measured_beside_those_that_are_not(tmp_path):
    stages = [
        Stage("a", "1 steps", eval_dataset={"one": ONE}),
        Stage("b", "1 steps", eval_dataset={"one": ONE, "two": TWO}),
        Stage("c", "1 steps", eval_dataset={"two": TWO}),
    ]
    trainer = trained(tmp_path, stages, eval_dataset=None)
    assert [p for p in trainer.passes if p.startswith("start")] == ["start_one", "start_two"]
    assert {k for log in starts(trainer) for k in log if k.endswith("loss")} == {"start_one_loss", "start_two_loss"}
    assert summary(tmp_path, "03-c")["domains_start"] == {"two": summary(tmp_path, "02-b")["domains"]["two"]}


def test_a_set_that_another_stage_measured_is_taken_over(tmp_path):
    """The run's own set, which the second stage does not evaluate itself, is measured at its end for the report."""
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", eval_dataset={"two": TWO}), Stage("c", "1 steps")]
    trainer = trained(tmp_path, stages)
    assert starts(trainer, 3)[0]["start_loss"] == summary(tmp_path, "02-b")["domains"]["eval"]["loss"]
    assert [p for p in trainer.passes if p.startswith("start")] == ["start", "start_two"]


def test_a_collator_by_source_is_compared_with_the_stages_source(tmp_path):
    collator = BySource({"short": Lengths(4), "long": Lengths(12)})
    stages = [Stage("a", "1 steps", train_dataset="short"), Stage("b", "1 steps", train_dataset="long")]
    given = {"train_dataset": {"short": ONE, "long": ONE}, "data_collator": collator}
    trainer = trained(tmp_path, stages, processing_class=tiny.tokenizer(), **given)
    assert trainer.passes == ["start", "eval", "start", "eval"]
    assert starts(trainer)[0]["start_items"] > summary(tmp_path, "01-a")["metrics"]["eval_items"]


class Prepares(Counted):
    """Each stage's sets are made of the same rows in its own way."""

    def stage_eval_dataset(self, dataset, stage):
        return dataset.select(range(8 if stage.name == self.plain else 4))


class PreparesOne(Counted):
    """Leaves the rows of all stages but one as they are."""

    def stage_eval_dataset(self, dataset, stage):
        return dataset.select(range(4)) if stage.name == "b" else dataset

    def stage_dataset(self, dataset, stage):
        return dataset.select(range(4)) if stage.name == "b" else dataset


def test_a_hook_that_prepares_one_stage_alone_is_asked_for_each(tmp_path):
    trainer = trained(
        tmp_path, [Stage("a", "1 epochs"), Stage("b", "1 epochs"), Stage("c", "1 epochs")], cls=PreparesOne
    )
    assert [p.size.examples for p in trainer.plan().stages] == [8, 4, 8]
    folders = ("01-a", "02-b", "03-c")
    assert [summary(tmp_path, folder)["metrics"]["eval_items"] for folder in folders] == [88, 44, 88]
    assert [summary(tmp_path, folder)["steps"] for folder in folders] == [4, 2, 4]


@pytest.mark.parametrize("plain", ["a", "b", ""])
def test_sets_that_a_trainer_prepares_by_stage_are_measured_anew(plain, tmp_path):
    own = type("Own", (Prepares,), {"plain": plain})
    trainer = trained(tmp_path, [Stage("a", "1 steps"), Stage("b", "1 steps")], cls=own)
    assert trainer.passes.count("start") == 2
    rows = [summary(tmp_path, folder)["metrics"]["eval_items"] for folder in ("01-a", "02-b")]
    assert rows == [88 if plain == name else 44 for name in ("a", "b")]
    assert [starts(trainer, stage)[0]["start_items"] for stage in (1, 2)] == rows


def test_resumed_at_the_boundary_it_says_the_same(tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps"), Stage("c", "1 steps", parents="a")]
    whole = trained(tmp_path / "whole", stages)
    assert whole.passes == ["start", "eval", "eval", "eval"]
    trained(tmp_path / "cut", stages[:1])
    run = json.loads((tmp_path / "whole" / "run.json").read_text())
    cut = trained(tmp_path / "cut", stages, resume=True)
    assert cut.passes == ["eval", "eval"]
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == run["status"] == "done"
    for folder in ("02-b", "03-c"):
        one, other = (summary(tmp_path / name, folder) for name in ("whole", "cut"))
        assert [one[k] for k in ("boundary", "domains", "domains_start")] == [
            other[k] for k in ("boundary", "domains", "domains_start")
        ]


class Tracker(TrainerCallback):
    """Makes its tags as Trainer's own trackers do."""

    def __init__(self):
        self.tags: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.tags.append(integration_utils.rewrite_logs(logs))


@pytest.mark.parametrize("named", [False, True])
def test_trackers_get_tags_of_their_own(named, tmp_path):
    tracker, theirs = Tracker(), integration_utils.rewrite_logs
    sets = {"one": ONE, "two": TWO} if named else ONE
    trained(tmp_path, [Stage("a", "1 steps"), Stage("b", "1 steps")], eval_dataset=sets, callbacks=[tracker])
    tags = {tag for log in tracker.tags for tag in log}
    wanted = {"one_loss", "two_loss"} if named else {"loss"}
    assert {f"start/{name}" for name in wanted} | {f"eval/{name}" for name in wanted} <= tags
    assert not any("start" in tag and not tag.startswith("start/") for tag in tags)
    assert "train/loss" in tags
    assert integration_utils.rewrite_logs is theirs


def test_tensorboard_shows_start_tags(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    writer = SummaryWriter(str(tmp_path / "board"))
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps")]
    trained(tmp_path / "out", stages, callbacks=[TensorBoardCallback(writer)])
    writer.close()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.step for event in board.Scalars("start/loss")] == [0, 1]
    assert [event.step for event in board.Scalars("eval/loss")] == [1, 2]
