"""Optimizer state by parameter name: through boundaries, files, and changes of structure."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.models import optimizer_moments
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.transforms import AddLora, Freeze, MergeLora, ResizeVocab, Unfreeze
from tests.support import tiny
from tests.support.sameness import assert_equal, plain

pytestmark = pytest.mark.usefixtures("quick_gc")

OPTIMIZERS = ["adamw_torch_fused", "adafactor", "adamw_bnb_8bit"]


class Watched(StagedTrainer):
    """Keeps the moments that each stage begins with."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self.__dict__.setdefault("begun", {})[self._stage.planned.name] = deepcopy(
            optimizer_moments.collect(self.optimizer, self.model)
        )
        return scheduler


def trained(out, optim, stages, **kwargs):
    if "bnb" in optim:
        pytest.importorskip("bitsandbytes")
    args = TrainingArguments(
        str(out),
        optim=optim,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny.llama(hidden_size=64)  # 64 x 64 elements: below 4096 the 8-bit optimizers keep 32 bits
    trainer = Watched(model, args, stages=stages, train_dataset=tiny.lm_data(), **kwargs)
    trainer.train()
    return trainer


def left_behind(out, folder):
    return optimizer_moments.load(out / folder / "training_state")


def notices(trainer):
    run = plain(Path(trainer.args.output_dir) / "run.json")
    return [entry for entry in run["ledger"] if entry["by"] == "optimizer"]


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize(
    "schedule", [Fresh(optimizer="carry"), Resume(), Rewarm(to=1e-3)], ids=["fresh", "resume", "rewarm"]
)
def test_moments_are_carried_by_name(tmp_path, optim, schedule):
    trainer = trained(tmp_path, optim, [Stage("a", "2 steps"), Stage("b", "1 steps", schedule=schedule)])
    before, after = left_behind(tmp_path, "01-a"), trainer.begun["b"]
    assert set(before.state) == {name for name, p in trainer.model.named_parameters()}
    assert_equal(dict(after.state), dict(before.state), "state")
    assert any(v.dtype == torch.uint8 for s in before.state.values() for v in s.values() if torch.is_tensor(v)) == (
        "8bit" in optim
    )
    assert not notices(trainer)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_reset_starts_with_empty_moments(tmp_path, optim):
    trainer = trained(tmp_path, optim, [Stage("a", "2 steps"), Stage("b", "1 steps", schedule=Fresh())])
    assert left_behind(tmp_path, "01-a").state
    assert not trainer.begun["b"].state


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_weight_of_another_shape_starts_with_empty_moments_and_the_ledger_says_so(tmp_path, optim):
    stages = [Stage("a", "2 steps"), Stage("b", "1 steps", transforms=[ResizeVocab(to=96)], schedule=Resume())]
    trainer = trained(tmp_path, optim, stages)
    before, after = left_behind(tmp_path, "01-a"), trainer.begun["b"]
    resized = {"model.embed_tokens.weight", "lm_head.weight"}
    assert_equal(dict(after.state), {k: v for k, v in before.state.items() if k not in resized}, "state")
    (notice,) = notices(trainer)
    assert (notice["step"], notice["stage"], notice["kind"]) == (2, "b", "notice")
    assert notice["reason"] == (
        f"moments of {len(after.state)} parameters carried, 2 start empty, such as model.embed_tokens.weight: "
        "its shape changed from [64, 64] to [96, 64]"
    )
    assert resized < set(left_behind(tmp_path, "02-b").state)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_moments_are_carried_into_lora_and_out_of_it(tmp_path, optim):
    """The head that goes on training keeps its moments under PEFT's name, and gives them back under its own."""
    lora = AddLora(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps", transforms=[lora], schedule=Resume()),
        Stage("c", "1 steps", transforms=[MergeLora()], schedule=Resume()),
    ]
    trainer = trained(tmp_path, optim, stages)
    a, b = left_behind(tmp_path, "01-a"), left_behind(tmp_path, "02-b")
    name = "base_model.model.lm_head.modules_to_save.default.weight"
    assert_equal(dict(trainer.begun["b"].state), {name: a.state["lm_head.weight"]}, "a to b")
    assert_equal(dict(trainer.begun["c"].state), {"lm_head.weight": b.state[name]}, "b to c")
    into, back = notices(trainer)
    assert "moments of 1 parameters carried, 4 start empty" in into["reason"]
    assert into["reason"].endswith(".lora_A.default.weight: it was not trained before")
    assert "moments of 1 parameters carried" in back["reason"]


def test_frozen_weights_have_no_moments_and_start_empty_when_they_train_again(tmp_path):
    stages = [
        Stage("a", "2 steps", transforms=[Freeze("embed_tokens")]),
        Stage("b", "1 steps", transforms=[Unfreeze("embed_tokens")], schedule=Resume()),
    ]
    trainer = trained(tmp_path, "adamw_torch_fused", stages)
    before = left_behind(tmp_path, "01-a")
    assert "model.embed_tokens.weight" not in before.state
    assert_equal(dict(trainer.begun["b"].state), dict(before.state), "state")
    assert notices(trainer)[0]["reason"].endswith("model.embed_tokens.weight: it was not trained before")


def test_another_optimizer_starts_with_empty_moments(tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "1 steps", schedule=Resume(), args={"optim": "adafactor"})]
    trainer = trained(tmp_path, "adamw_torch_fused", stages)
    assert not trainer.begun["b"].state
    assert notices(trainer)[0]["reason"].endswith("the optimizer changed from AdamW to Adafactor")


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_saved_moments_are_read_back_as_they_were(tmp_path, optim):
    trainer = trained(tmp_path / "run", optim, [Stage("a", "2 steps")])
    collected = optimizer_moments.collect(trainer.optimizer, trainer.model)
    optimizer_moments.save(collected, tmp_path)
    loaded = optimizer_moments.load(tmp_path)
    assert_equal(
        {k: dict(v) for k, v in loaded.state.items()}, {k: dict(v) for k, v in collected.state.items()}, "state"
    )
    assert (loaded.optimizer, loaded.shapes) == (collected.optimizer, collected.shapes)
    assert optimizer_moments.load(tmp_path / "nothing") is None
