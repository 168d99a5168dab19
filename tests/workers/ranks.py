"""What scenarios of two ranks share: staged runs that one process is compared with, and what is watched in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.schedules import Resume
from hf_stages.transforms import AddLora, Freeze, MergeLora, ResizeVocab, SetTask, Unfreeze
from tests.support import tiny
from tests.workers.cases import CASES, Pad, Rows, arguments

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
REGISTERED: dict[str, Callable[[Path], Any]] = {}


def scenario(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Registers a function of a folder, which asserts on every rank and may return data for a test to compare."""
    assert function.__name__ not in REGISTERED
    REGISTERED[function.__name__] = function
    return function


def chain() -> list[Stage]:
    """Every kind of transition, one after another, from a causal model to a classifier."""
    lora = AddLora(r=2, target_modules=["q_proj", "v_proj"])
    return [
        Stage("start", "2 steps"),
        Stage("plain", "3 steps", schedule=Resume()),
        Stage("frozen", "2 steps", transforms=[Freeze(["model.layers.0", "lm_head"])]),
        Stage("unfrozen", "2 steps", transforms=[Unfreeze(["model.layers.0", "lm_head"])], schedule=Resume()),
        Stage("resized", "2 steps", transforms=[ResizeVocab(80)]),
        Stage("lora", "3 steps", transforms=[lora]),
        Stage("merged", "2 steps", transforms=[MergeLora()]),
        Stage(
            "classes",
            "2 steps",
            transforms=[SetTask("AutoModelForSequenceClassification", num_labels=3)],
            train_dataset=classes(),
        ),
    ]


def classes() -> Rows:
    return Rows([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in tiny.class_data(16)])


def staged(out: Path, stages: list[Stage], batch: int, accumulation: int = 1, **changes: Any) -> StagedTrainer:
    keys = ("callbacks", "compute_metrics", "eval_dataset", "model", "train_dataset", "kind", "teacher", "notify")
    own = {key: changes.pop(key) for key in keys if key in changes}
    args = arguments(out, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **changes)
    kind = own.pop("kind", StagedTrainer)
    model = own.pop("model", None)
    own.setdefault("train_dataset", Rows(CASES["causal"].rows() * 2))
    return kind(
        model if model is not None else tiny.llama(pad_token_id=0),
        args,
        data_collator=Pad(),
        stages=stages,
        **own,
    )


class Recorded(StagedTrainer):
    """Notes which rows each update saw, by their first tokens."""

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        rows = [tuple(row[:4].tolist()) for batch in batches for row in batch["input_ids"]]
        self.__dict__.setdefault("seen", []).append(rows)
        return batches, items


class Watch(TrainerCallback):
    """After every update the ranks' weights must be equal; by a stage's end every trainable parameter must have
    moved."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.start: dict[str, dict[str, torch.Tensor]] = {}
        self.still: dict[str, list[str]] = {}
        self.frozen_moved: dict[str, list[str]] = {}
        self.updates = 0

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        name = self.trainer._stage.planned.name
        if name not in self.start:
            self.start[name] = {n: p.detach().clone() for n, p in model.named_parameters()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        name, self.updates = self.trainer._stage.planned.name, self.updates + 1
        before = self.start[name]
        equal = {n: torch.equal(p, before[n]) for n, p in model.named_parameters()}
        wanted = {n for n, p in model.named_parameters() if p.requires_grad}
        self.still[name] = sorted(n for n in wanted if equal[n])
        self.frozen_moved[name] = sorted(n for n in before if n not in wanted and not equal[n])
        same_on_ranks(model, f"{name}, update {self.updates}")


def same_on_ranks(model: Any, where: str) -> None:
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    both = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(both, flat)
    assert torch.equal(both[0], both[1]), f"{where}: ranks differ by {(both[0] - both[1]).abs().max()}"


def watched(
    out: Path, stages: list[Stage], batch: int = 4, accumulation: int = 1, **changes: Any
) -> tuple[StagedTrainer, Watch]:
    watch = Watch()
    trainer = staged(out, stages, batch, accumulation, callbacks=[watch, *changes.pop("callbacks", [])], **changes)
    watch.trainer = trainer
    return trainer, watch


def agree(value: Any) -> Any:
    both: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(both, value)
    assert both[0] == both[1], both
    return value


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def all_moved(watch: Watch, stages: list[Stage]) -> None:
    assert {name: still for name, still in watch.still.items() if still} == {}
    assert {name: moved for name, moved in watch.frozen_moved.items() if moved} == {}
    assert list(watch.still) == [stage.name for stage in stages]


class AskToStop(TrainerCallback):
    """One rank alone is asked to stop: in the midst of an update, or at its end."""

    def __init__(self, rank: int, step: int, event: str) -> None:
        self.rank, self.step, self.event, self.trainer = rank, step, event, None

    def _ask(self, event: str, step: int) -> None:
        if event == self.event and step == self.step and dist.get_rank() == self.rank:
            self.trainer.request_stop("asked")

    def on_substep_end(self, args, state, control, **kwargs):
        self._ask("substep", state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._ask("step", state.global_step)
