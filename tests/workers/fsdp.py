"""Scenarios for two ranks of FSDP2 on the CPU. See ``two_ranks.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.gates import Expect, OnSpike
from hf_stages.models import optimizer_moments
from hf_stages.monitors import AttentionEntropy, RunHealth
from hf_stages.reports.incidents import read_incidents
from hf_stages.schedules import Resume
from hf_stages.transforms import AddLora, Freeze, MergeLora, ResizeVocab, SetTask, Unfreeze
from tests.support.poisoned import RecordFrom, poisoned_data
from tests.workers import ranks
from tests.workers.ranks import agree, classes, scenario, staged
from tests.workers.watching import CLOCKS

FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
    },
}
ADAM = {**FSDP, **ranks.ADAM, "max_grad_norm": 1.0}


def allow_fsdp_on_cpu() -> None:
    """accelerate 1.15 drops the FSDP plugin, without a word, where the ranks are on CPUs; torch itself shards there."""
    create = Trainer.create_accelerator_and_postprocess

    def patched(self: Any) -> None:
        if self.args.fsdp:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create(self)

    Trainer.create_accelerator_and_postprocess = patched


def chain() -> list[Stage]:
    return [
        Stage("start", "3 steps"),
        Stage("plain", "3 steps", schedule=Resume()),
        Stage("frozen", "1 steps", transforms=[Freeze(["model.layers.0"])], schedule=Resume()),
        Stage("resized", "3 steps", transforms=[Unfreeze(["model.layers.0"]), ResizeVocab(80)], schedule=Resume()),
        Stage("lora", "3 steps", transforms=[AddLora(r=2, target_modules=["q_proj", "v_proj"])]),
        Stage("merged", "1 steps", transforms=[MergeLora()]),
        Stage(
            "classes",
            "3 steps",
            transforms=[SetTask("AutoModelForSequenceClassification", num_labels=3)],
            train_dataset=classes(),
        ),
    ]


class Sharded(TrainerCallback):
    """Weights are shards, and every trainable one moves in every stage."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.start: dict[str, dict[str, torch.Tensor]] = {}
        self.still: dict[str, list[str]] = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        assert all(isinstance(p, DTensor) for p in self.trainer.model.parameters())
        self.start.setdefault(self.trainer._stage.planned.name, full(self.trainer.model))

    def on_step_end(self, args, state, control, **kwargs):
        name, model = self.trainer._stage.planned.name, self.trainer.model
        before, now = self.start[name], full(model)
        trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        self.still[name] = [n for n in trainable if torch.equal(before[n], now[n])]


def full(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().full_tensor().clone() for n, p in model.named_parameters()}


def sharded(out: Path, stages: list[Stage], batch: int = 4, accumulation: int = 1, **changes: Any) -> Any:
    watch = Sharded()
    trainer = staged(out, stages, batch, accumulation, callbacks=[watch, *changes.pop("callbacks", [])], **changes)
    watch.trainer = trainer
    assert trainer.is_fsdp_enabled
    return trainer, watch


@scenario
def sharded_transitions(out: Path) -> None:
    """Compared with a single process by the test."""
    trainer, watch = sharded(out / "run", chain(), 2, 2, **FSDP)
    trainer.train()
    assert list(watch.still) == [stage.name for stage in chain()]
    assert not any(watch.still.values()), watch.still


@scenario
def sharded_folders(out: Path) -> None:
    """Each stage folder is what stock transformers loads, with the moments that the ranks held."""
    held: dict[str, Any] = {}

    class Hold(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            name = trainer._stage.planned.name
            held[name] = (full(trainer.model), optimizer_moments.collect(trainer.optimizer, trainer.model))

    trainer, _ = sharded(out / "run", chain(), callbacks=[Hold()], **ADAM)
    trainer.train()
    for number, (name, (weights, taken)) in enumerate(held.items(), 1):
        folder = out / "run" / f"{number:02d}-{name}"
        saved = optimizer_moments.load(folder / "training_state")
        assert saved.state.keys() == taken.state.keys()
        assert len(taken.state) > 2
        assert saved.shapes == taken.shapes
        for parameter, state in taken.state.items():
            assert all(torch.equal(saved.state[parameter][key], value) for key, value in state.items())
        if name == "lora":
            continue
        auto = AutoModelForSequenceClassification if name == "classes" else AutoModelForCausalLM
        stock = dict(auto.from_pretrained(folder).named_parameters())
        assert stock.keys() == weights.keys()
        assert all(torch.equal(stock[n], weights[n]) for n in weights), name
    carried = load_file(out / "run" / "02-plain" / "training_state" / "optimizer.safetensors")
    steps = {key: value.item() for key, value in carried.items() if key.endswith("::step")}
    assert set(steps.values()) == {6.0}, steps  # three updates of "start" and three of its own


@scenario
def sharded_resumed(out: Path) -> None:
    """Cut in the midst of stages and at boundaries; resumed, the same weights, bit for bit."""
    whole, _ = sharded(out / "whole", chain(), 2, 2, **ADAM)
    whole.train()
    wanted = full(whole.model)
    for step in (0, 3, 7, 10, 14):  # in start, plain, resized, lora and classes
        folder = out / f"midst-{step}"
        stop = ranks.AskToStop(1, step, "substep")
        stop.trainer, _ = sharded(folder, chain(), 2, 2, callbacks=[stop], **ADAM)
        try:
            stop.trainer.train()
        except RunInterrupted:
            assert (folder / f"checkpoint-{step + 2}").is_dir()
        else:
            raise AssertionError(f"{step}: not stopped")
        dist.barrier()
        again, _ = sharded(folder, chain(), 2, 2, **ADAM)
        again.train(resume_from_checkpoint=True)
        end = full(again.model)
        apart = {n: (end[n] - wanted[n]).abs().max().item() for n in wanted if not torch.equal(end[n], wanted[n])}
        assert not apart, f"cut after {step}, stopped at {stop.trainer.state.global_step}: {apart}"
    for name in ("plain", "lora"):
        stages = chain()
        at = [stage.name for stage in stages].index(name)
        gate = Expect("train_loss", high=-1.0)
        stages[at] = Stage(
            name, stages[at].until, transforms=stages[at].transforms, schedule=stages[at].schedule, gates=[gate]
        )
        try:
            sharded(out / name, stages, 2, 2, **ADAM)[0].train()
        except StageStopped as error:
            agree(str(error))
        dist.barrier()
        again, _ = sharded(out / name, chain(), 2, 2, **ADAM)
        again.train(resume_from_checkpoint=True)
        end = full(again.model)
        assert all(torch.equal(end[n], wanted[n]) for n in wanted), f"after {name}: not as if never cut"


@scenario
def sharded_incident(out: Path) -> None:
    """Rows are measured by a sharded model: every rank runs as many forwards, and the training has no trace of them."""
    data, _ = poisoned_data()
    found = {}
    for name, first in (("plain", 99), ("recorded", 2)):
        callback = RecordFrom(first)
        options = {"train_dataset": data["web"], "callbacks": [callback], **ADAM}
        trainer = staged(out / name, [Stage("one", "5 steps")], 4, 2, **options)
        callback.trainer = trainer
        trainer.train()
        found[name] = full(trainer.model)
    assert all(torch.equal(found["plain"][key], value) for key, value in found["recorded"].items())
    dist.barrier()
    incidents = read_incidents(out / "recorded")
    assert [len(incident.rows) for incident in incidents] == [16, 8, 16]  # the last update of an epoch is smaller
    assert all(row.loss is not None for incident in incidents for row in incident.rows)
    assert incidents[0].problem is None
    assert not list((out / "recorded").rglob("*.weights.safetensors"))


@scenario
def sharded_skip(out: Path) -> None:
    """An update with NaN in the gradient of one rank's shard is left out on both: the run ends as one that had none."""
    found = []
    for name, steps, bad in (("short", 6, ()), ("long", 8, (6, 7))):
        stage = Stage("one", f"{steps} steps", gates=[OnSpike(rows=False)])
        trainer = staged(out / name, [stage], 4, kind=SpoiltShard, **{**ADAM, "lr_scheduler_type": "constant"})
        trainer.bad = bad
        trainer.train()
        found.append(full(trainer.model))
    assert all(torch.equal(found[0][key], value) for key, value in found[1].items())


class SpoiltShard(StagedTrainer):
    bad: tuple[int, ...]

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.state.global_step in self.bad and dist.get_rank() == 1:
            next(weight for weight in model.parameters() if weight.grad is not None).grad.to_local().fill_(float("nan"))
        return loss


@scenario
def watched_shards(out: Path) -> None:
    """Where each rank holds a part of every weight, monitors log what they do where it holds the whole."""
    found = {}
    for name, kind, options in (("whole", staged, {}), ("sharded", sharded, FSDP)):
        stages = [Stage("watched", "4 steps", monitors=[RunHealth(), AttentionEntropy()])]
        made: Any = kind(out / name, stages, 4, 1, logging_steps=2, logging_strategy="steps", **options)
        trainer = made[0] if kind is sharded else made
        trainer.train()
        found[name] = [log for log in trainer.state.log_history if "raw_loss" in log]
    for log, whole in zip(found["sharded"], found["whole"], strict=True):
        assert log.keys() == whole.keys()
        apart = {k: (log[k], whole[k]) for k in whole if abs(log[k] - whole[k]) > 2e-3 * abs(whole[k]) + 1e-6}
        assert not apart.keys() - set(CLOCKS), apart
