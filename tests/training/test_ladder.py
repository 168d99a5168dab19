"""Runs with a ladder: poisoned data do no harm, and each action does what it says, on the ledger and on the weights."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_stages import Stage, StagedTrainer, Step
from hf_stages.core.stops import StageStopped
from hf_stages.gates import CutRate, Detector, EndStage, Finding, OnSpike, Rollback, StopRun
from hf_stages.losses import TaskLoss
from tests.support import tiny
from tests.support.runs import staged, summary

BATCH, UPDATES = 8, 100
POISONED = range(86, 94)
LADDER = [CutRate(0.5), Rollback(30)]


def noted(out: Path, folder: str = "01-a") -> list[tuple[int, str]]:
    kinds = ("skip", "alert", "cut_lr", "rollback", "stop", "end")
    return [(entry["step"], entry["kind"]) for entry in summary(out, folder)["ledger"] if entry["kind"] in kinds]


# ---- poisoned data --------------------------------------------------------------------------------------------------


def pictures(rows: int, seed: int, poison: str | None = None) -> Dataset:
    """Noise in which the class is the brightest colour. In the updates ``POISONED`` it is spoilt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows,), generator=generator)
    pixels = 0.3 * torch.randn(rows, 3, 16, 16, generator=generator)
    pixels[torch.arange(rows), labels] += 0.5
    bad = slice(BATCH * POISONED.start, BATCH * POISONED.stop)
    if poison == "NaN":
        pixels[bad] = math.nan
    elif poison == "garbage":
        pixels[bad] *= 10
    if poison in ("garbage", "labels"):
        labels[bad] = (labels[bad] + 1) % 3
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": labels.tolist()}).with_format("torch")


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


@functools.cache
def final_loss(out: Path, poison: str | None, *, plain: bool = False) -> float:
    out = out / f"{poison}-{plain}"
    args = TrainingArguments(
        str(out),
        per_device_train_batch_size=BATCH,
        max_steps=UPDATES,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        logging_nan_inf_filter=False,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    data = {"train_dataset": pictures(BATCH * UPDATES, 1, poison), "eval_dataset": pictures(64, 2)}
    if plain:
        trainer = InOrder(tiny.vit(num_hidden_layers=1), args, **data)
    else:
        stage = Stage("a", f"{UPDATES} steps", gates=[OnSpike(then=LADDER)])
        trainer = StagedTrainer(tiny.vit(num_hidden_layers=1), args, stages=[stage], **data)
    trainer.train()
    if not plain and poison is not None:
        # A skip is told at once, and so many may follow each other; then the rate is cut, then the run goes back.
        kinds = [kind for _, kind in noted(out)]
        assert kinds == ["skip"] * 4 + ["cut_lr"] + ["skip"] * 4 + ["rollback", "end"]
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert len(losses) == UPDATES // 10
        assert all(map(math.isfinite, losses))
    return trainer.evaluate()["eval_loss"]


@pytest.fixture(scope="module")
def poisoned_runs(tmp_path_factory):
    return functools.partial(final_loss, tmp_path_factory.mktemp("poisoned"))


@pytest.mark.parametrize("poison", ["NaN", "garbage", pytest.param("labels", marks=pytest.mark.slow)])
def test_poisoned_rows_ruin_a_plain_run_and_not_ours(poisoned_runs, poison):
    clean, ours, plain = poisoned_runs(None), poisoned_runs(poison), poisoned_runs(poison, plain=True)
    assert clean < 0.05
    assert ours < 0.05
    assert not plain < 0.5  # NaN is not


# ---- gradients that are spoilt in some updates ----------------------------------------------------------------------


class Spoilt(StagedTrainer):
    """Multiplies the gradient of some updates, by the number of updates before them."""

    spoilt: dict[int, float]

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients and self.state.global_step in self.spoilt:
            for weight in model.parameters():
                weight.grad *= self.spoilt[self.state.global_step]
        return loss


def spoilt(out: Path, stages: list[Stage], where: dict[int, float], kind: type[Spoilt] = Spoilt, **args) -> Spoilt:
    made = staged(out, stages, args=args)
    trainer = kind(made.model, made.args, stages=stages, train_dataset=tiny.lm_data(), data_collator=made.data_collator)
    trainer.spoilt = where
    return trainer


def test_a_skipped_update_leaves_the_weights_as_they_were(tmp_path):
    """A run whose last updates are skipped ends with the weights of one that stopped before them."""
    ends = []
    for name, updates, where in (("short", 10, {}), ("long", 12, {10: math.nan, 11: 1e6})):
        gates = [OnSpike(window=4)]
        trainer = spoilt(tmp_path / name, [Stage("a", f"{updates} steps", gates=gates)], where)
        trainer.args.lr_scheduler_type = "constant"
        trainer.train()
        ends.append({name: weight.detach().clone() for name, weight in trainer.model.named_parameters()})
    assert noted(tmp_path / "long") == [(11, "skip"), (12, "end"), (12, "skip")]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_a_stop_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path):
    where = {8: math.nan, 9: math.nan}
    stages = [Stage("a", "20 steps", gates=[OnSpike(skip=1, then=StopRun())]), Stage("b", "2 steps")]
    with pytest.raises(StageStopped, match=r"stage 'a': more than 1 bad updates in a row: grad_norm is nan.*resume"):
        spoilt(tmp_path, stages, where).train()
    assert (tmp_path / "checkpoint-10").is_dir()
    spoilt(tmp_path, stages, where).train(resume_from_checkpoint=True)
    assert noted(tmp_path, "02-b")[:5] == [(9, "skip"), (10, "skip"), (10, "stop"), (20, "end"), (22, "end")]


def test_a_stage_can_be_ended(tmp_path):
    stages = [Stage("a", "20 steps", gates=[OnSpike(skip=0, then=EndStage())]), Stage("b", "2 steps")]
    spoilt(tmp_path, stages, {8: math.nan}, logging_steps=5).train()
    assert noted(tmp_path, "02-b") == [(9, "skip"), (9, "end"), (12, "end")]
    assert summary(tmp_path, "01-a")["ended_by"] == "OnSpike"


def test_a_level_that_lasts_is_taken_as_the_new_one_where_there_is_no_ladder(tmp_path):
    where = dict.fromkeys(range(12, 30), 1e3)
    spoilt(tmp_path, [Stage("a", "30 steps", gates=[OnSpike(skip=2, window=4)])], where).train()
    assert noted(tmp_path) == [(13, "skip"), (14, "skip"), (15, "skip"), (15, "alert"), (30, "end")]


def test_a_weight_that_jumps_by_its_own_curve_is_no_spike_and_what_comes_after_it_may_be(tmp_path):
    loss = Step(((0, 1), (0.5, 10))) * TaskLoss()
    gates = [OnSpike(window=4, sigma=12)]
    spoilt(tmp_path, [Stage("a", "20 steps", loss=loss, gates=gates)], {17: 1e3}).train()
    assert noted(tmp_path) == [(18, "skip"), (20, "end")]


@dataclass(frozen=True)
class At(Detector):
    """Finds something at one step of the log."""

    step: int = 0

    def find(self, history):
        return Finding("it is time") if history.global_step == self.step else None


def test_a_detector_of_the_log_goes_back_too(tmp_path):
    """Weights, moments and the rate are those of the state; steps, data and the log go on."""
    weights = {}

    class Watching(Spoilt):
        def get_batch_samples(self, *args, **kwargs):
            found = super().get_batch_samples(*args, **kwargs)
            weights[self.state.global_step] = self.model.lm_head.weight.detach().clone()
            return found

    stage = Stage("a", "20 steps", gates=[At(step=13, then=Rollback(5, factor=0.1))])
    trainer = spoilt(tmp_path, [stage], {}, Watching)
    trainer.train()
    assert torch.equal(weights[13], weights[6])  # saved every third update; nine would not be five old
    assert not torch.equal(weights[14], weights[7])
    assert noted(tmp_path) == [(13, "rollback"), (20, "end")]
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert len(rates) == 20
    assert rates[13] < 0.2 * rates[12]


def test_of_detectors_that_find_something_together_one_goes_back(tmp_path):
    class Other(At):
        pass

    gates = [At(step=13, then=Rollback(5)), Other(step=13, then=Rollback(5))]
    spoilt(tmp_path, [Stage("a", "20 steps", gates=gates)], {}).train()
    assert noted(tmp_path) == [(13, "rollback"), (20, "end")]


def test_a_detector_of_the_log_stops_the_run_behind_a_checkpoint(tmp_path):
    stages = [Stage("a", "20 steps", gates=[At(step=16, then=StopRun())])]  # as an epoch ends
    with pytest.raises(StageStopped, match="it is time; the run stops here; a checkpoint of step 16 was written"):
        spoilt(tmp_path, stages, {}).train()
    spoilt(tmp_path, stages, {}).train(resume_from_checkpoint=True)
    assert noted(tmp_path) == [(16, "stop"), (20, "end")]
    spoilt(tmp_path / "whole", [Stage("a", "20 steps")], {}).train()
    ends = [load_file(out / "01-a" / "model.safetensors") for out in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


@pytest.mark.parametrize(
    ("action", "changes", "message"),
    [
        (Rollback(20), {}, "steps: expected fewer than the stage's 20 updates, got 20"),
        (
            Rollback(5, skip_data=False),
            {"gradient_accumulation_steps": 3},
            "an epoch of 8 micro-batches is no whole number of updates of 3",
        ),
    ],
)
def test_the_plan_refuses_a_way_back_that_is_not_there(tmp_path, action, changes, message):
    trainer = staged(tmp_path, [Stage("a", "20 steps", gates=[OnSpike(then=[CutRate(), action])])], args=changes)
    with pytest.raises(ValueError, match=rf"stage 'a': gates\[0\] OnSpike: then: Rollback: .*{message}"):
        trainer.plan()


def test_a_stream_cannot_be_read_again(tmp_path):
    stage = Stage("a", "20 steps", gates=[OnSpike(then=Rollback(5, skip_data=False))])
    stream = tiny.lm_data().to_iterable_dataset()
    with pytest.raises(ValueError, match="skip_data=False: a stream cannot be read backwards; use skip_data=True"):
        staged(tmp_path, [stage], train_dataset=stream).plan()


def test_without_the_gate_a_loss_that_is_not_finite_still_ends_the_run(tmp_path):
    class NaN(TaskLoss):
        def __call__(self, student, teacher, batch, t):
            return super().__call__(student, teacher, batch, t) * math.nan

    for gates in ([], [OnSpike(non_finite=False)]):
        with pytest.raises(ValueError, match="its value is nan"):
            staged(tmp_path / str(len(gates)), [Stage("a", "2 steps", loss=NaN(), gates=gates)]).train()
