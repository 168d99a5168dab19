"""Scenarios for two ranks of DDP: whole runs, gradients and evaluations, the same as in one process."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear, Step
from hf_stages.losses import AttentionKL, AttentionMSE, HiddenMSE, LogitKL, TaskLoss
from hf_stages.schedules import Resume
from hf_stages.transforms import SplitTernary, Ternarize
from tests.support import tiny
from tests.workers.cases import CASES, Pad, Rows, gradient
from tests.workers.heads import HEADS, update
from tests.workers.ranks import (
    all_moved,
    chain,
    same_on_ranks,
    scenario,
    staged,
    watched,
)


@scenario
def transitions(out: Path) -> None:
    trainer, watch = watched(out / "run", chain())
    trainer.train()
    all_moved(watch, chain())
    same_on_ranks(trainer.model, "the end")


@scenario
def transitions_accumulated(out: Path) -> None:
    trainer, watch = watched(out / "run", chain(), 2, 2)
    trainer.train()
    all_moved(watch, chain())


@scenario
def without_search_for_unused(out: Path) -> None:
    """ddp_find_unused_parameters=False: frozen parameters are not waited for, in any stage."""
    stages = chain()
    trainer, watch = watched(out / "run", stages, ddp_find_unused_parameters=False)
    trainer.train()
    all_moved(watch, stages)


@scenario
def checkpointed_activations(out: Path) -> None:
    stages = chain()
    trainer, watch = watched(out / "run", stages, activation_checkpointing=True)
    trainer.train()
    all_moved(watch, stages)


@scenario
def fused_heads(out: Path) -> dict[str, Any]:
    return fused_head_runs(out, 2) if find_spec("trl") is not None else {}


def fused_head_runs(out: Path, batch: int) -> dict[str, Any]:
    """TRL's own loss beside a teacher's terms, which cost a second forward or none: losses and tokens."""
    from tests.support import sft

    found = {}
    for name, loss in {"logits": TaskLoss() + LogitKL(), "features": TaskLoss() + 10 * HiddenMSE()}.items():
        how = {
            "per_device_train_batch_size": batch,
            "train_sampling_strategy": "sequential",
            "packing": name == "features",
        }
        stages = [Stage("a", "2 steps", loss=loss), Stage("b", "2 steps", loss=loss, train_dataset=sft.talk())]
        trainer = sft.staged(out / name, *stages, args=sft.arguments(out / name, **how), teacher=sft.model(1))
        trainer.train()
        found[name] = {key: sft.logged(trainer, key) for key in ("loss", "num_tokens", "mean_token_accuracy")}
    return found


# A batch on one process is tested with all cases; on ranks each way of dividing a loss, and each kind of signal, once.
GRADIENTS = (
    "split",
    "classifier",
    "causal",
    "token",
    "seq2seq",
    "smoothed",
    "loss-func",
    "summed",
    "relation",
    "projected",
    "projected,logits",
    "logits,hidden",
    "vision",
    "two-stacks",
    "silent",
)
MORE_GRADIENTS = tuple(name for name in CASES if name not in GRADIENTS)


@scenario
def gradients(out: Path) -> None:
    save_gradients(out, GRADIENTS)


@scenario
def more_gradients(out: Path) -> None:
    save_gradients(out, MORE_GRADIENTS)


def save_gradients(out: Path, names: tuple[str, ...]) -> None:
    for name in names:
        found = gradient(name, out / name / "4", 4)
        cut = gradient(name, out / name / "1", 1, 4)
        if dist.get_rank() == 0:
            save_file(found, out / f"{name}.safetensors")
            save_file(cut, out / f"{name}.accumulated.safetensors")


HEADS_ON_RANKS = ("question answering, outside", "two heads", "CTC, sum", "CTC, mean", "segmentation", "masked images")


@scenario
def heads(out: Path) -> None:
    for place, name in enumerate(HEADS_ON_RANKS):
        found = update(out / f"{place}-4", HEADS[name], 4)
        cut = update(out / f"{place}-1", HEADS[name], 1, 4)
        if dist.get_rank() == 0:
            save_file(found, out / f"{place}.safetensors")
            save_file(cut, out / f"{place}.accumulated.safetensors")


def distilled(out: Path, batch: int, accumulation: int = 1, **changes: Any) -> StagedTrainer:
    """Stages whose losses leave parts of the model without a gradient, which AdamW must not decay either."""
    stages = [
        Stage("features", "3 steps", loss=HiddenMSE({1: 2}) + AttentionMSE({1: 2})),
        Stage("attention", "2 steps", loss=AttentionKL()),
        Stage(
            "turns",
            "4 steps",
            loss=Step(((0, 0), (0.5, 1))) * TaskLoss() + Step(((0, 1), (0.5, 0))) * HiddenMSE(project="each"),
        ),
        Stage("logits", "2 steps", loss=Linear(0, 1) * HiddenMSE({1: 1}, project="each") + LogitKL(2.0)),
    ]
    args = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.5, "max_grad_norm": 1.0, **changes}
    teacher = tiny.llama(1, num_hidden_layers=4)
    return staged(out, stages, batch, accumulation, teacher=teacher, **args)


@scenario
def distillation(out: Path) -> None:
    for name, how in {"4": (4, 1), "2x2": (2, 2)}.items():
        trainer = distilled(out / name, *how)
        trainer.train()
        same_on_ranks(trainer.model, name)
    trainer = distilled(out / "checkpointed", 4, activation_checkpointing=True)
    trainer.train()


def quantized_chain() -> list[Stage]:
    ternary = Ternarize(activations=None, strength=Linear(0, 1))
    return [
        Stage("ternary", "3 steps", transforms=[ternary]),
        Stage("split", "2 steps", transforms=[SplitTernary()], schedule=Resume()),
    ]


@scenario
def quantized(out: Path) -> None:
    trainer, watch = watched(out / "run", quantized_chain())
    trainer.train()
    all_moved(watch, quantized_chain())


@scenario
def evaluation(out: Path) -> None:
    """Seven ragged rows in batches of two: the rows that fill the last ones count once, in the loss and in teachers'
    terms."""
    rows = [{**row, "labels": [-100] * i + row["labels"][i:]} for i, row in enumerate(CASES["causal"].rows()[:7])]
    teacher = tiny.llama(pad_token_id=0, seed=3)
    for count, own in ((7, False), (5, False), (3, False), (5, True)):
        stage = Stage("a", "1 steps", loss=TaskLoss() + HiddenMSE(layers={1: 1}))
        sets = {"few": Rows(rows[:count])}
        trainer, _ = watched(
            out / f"{count}{own}",
            [stage],
            eval_dataset=sets,
            teacher=teacher,
            per_device_eval_batch_size=2,
            num_train_epochs=1,
        )
        if own:  # a step that asks the model itself: nothing passes compute_loss
            trainer.prediction_step = lambda model, inputs, *args, **kwargs: (model(**inputs).loss.detach(), None, None)
        trainer.train()
        found = json.loads((out / f"{count}{own}" / "01-a" / "stage.json").read_text())["domains"]["few"]
        model = trainer.model.eval()
        total = items = distance = tokens = 0.0
        for row in rows[:count]:
            batch = Pad()([row])
            labels = batch["labels"][:, 1:].ne(-100).sum().item()
            real = batch["attention_mask"].sum().item()
            with torch.no_grad():
                mine, theirs = (m(**batch, output_hidden_states=True) for m in (model, teacher))
                total, items = total + (mine.loss.item() * labels if labels else 0.0), items + labels
                apart = (mine.hidden_states[1] - theirs.hidden_states[1]).pow(2).mean(-1)
                distance, tokens = distance + (apart * batch["attention_mask"]).sum().item(), tokens + real
        assert found["items"] == items, (count, found)
        assert found["loss"] == pytest.approx(total / items, rel=1e-5), count
        assert own or found["HiddenMSE"] == pytest.approx(distance / tokens, rel=1e-4), count
