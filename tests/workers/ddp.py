"""Scenarios for two ranks of DDP on the CPU. See ``two_ranks.py``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear, Step
from hf_stages.core.folder_lock import alone_in
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.data import ByLength, Mixture, Replay
from hf_stages.gates import Above, Budget, Expect, Forgetting
from hf_stages.losses import AttentionKL, AttentionMSE, HiddenMSE, LogitKL, Loss, TaskLoss
from hf_stages.schedules import Resume
from hf_stages.transforms import AddLora, Freeze, MergeLora, ResizeVocab, SetTask, SplitTernary, Ternarize, Unfreeze
from tests.support import tiny
from tests.workers.cases import CASES, Pad, Rows, arguments, gradient, text
from tests.workers.heads import HEADS, update

SCENARIOS: dict[str, Callable[[Path], Any]] = {}


def scenario(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    SCENARIOS[function.__name__] = function
    return function


# ---- shared with the single process that the ranks are compared with ------------------------------------------------


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
    keys = ("callbacks", "compute_metrics", "eval_dataset", "model", "train_dataset", "kind", "teacher")
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


def order(out: Path, batch: int, accumulation: int = 1, *, stream: bool = False) -> list[list[tuple[int, ...]]]:
    data = tiny.lm_data(24, 4)
    stages = [Stage("a", "5 steps"), Stage("b", "2 steps", args={"train_sampling_strategy": "sequential"})]
    rows: Any = Rows([dict(row) for row in data])
    if stream:
        rows, stages = data.to_iterable_dataset(), stages[:1]
    more = {"max_steps": 5} if stream else {}
    trainer = staged(out, stages, batch, accumulation, kind=Recorded, train_dataset=rows, **more)
    trainer.train()
    return trainer.seen


# ---- what is watched ----------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """After every update the ranks' weights must be equal; by a stage's end every trainable parameter must have moved."""

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


# ---- scenarios ------------------------------------------------------------------------------------------------------


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
def occupied(out: Path) -> None:
    """A folder that another run holds is refused on all ranks together, not on the one that writes alone."""
    trainer = staged(out / "run", [Stage("a", "1 step")], 4)
    with alone_in(out / "run") if dist.get_rank() == 0 else nullcontext():
        dist.barrier()
        with pytest.raises(ValueError, match="writes into this folder"):
            trainer.train()
        dist.barrier()
    trainer.train()


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
    from tests.training import test_sft as sft

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


@scenario
def gradients(out: Path) -> None:
    for name in CASES:
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


@scenario
def data_order(out: Path) -> dict[str, Any]:
    found = {}
    for name, how in {"4": (4, 1), "2x2": (2, 2)}.items():
        both: list[Any] = [None, None]
        dist.all_gather_object(both, order(out / name, *how))
        found[name] = [sorted(a + b) for a, b in zip(*both, strict=True)]
    both = [None, None]
    dist.all_gather_object(both, order(out / "stream", 4, stream=True))
    found["stream"] = [sorted(a + b) for a, b in zip(*both, strict=True)]
    return found


def mixtures() -> dict[str, Any]:
    """Each way of drawing: quotas alone, tokens one by one, rows that are taken together, a stream."""
    data = {"a": tiny.lm_data(18, 6), "b": tiny.lm_data(10, 4, seed=1)}
    stream = {**data, "b": data["b"].to_iterable_dataset()}
    ramp = {"a": Linear(1, 0.3), "b": Linear(0, 0.7)}
    return {
        "ramp": (data, Mixture(ramp)),
        "tokens": (data, Mixture(ramp, weigh="tokens")),
        "lengths": (data, Replay("b", 0.2, into=ByLength("a", tokens=12))),
        "stream": (stream, Mixture(ramp)),
    }


def mixed(
    out: Path, name: str, batch: int, accumulation: int = 1
) -> tuple[list[Any], dict[str, Any], dict[str, float]]:
    """Rows of each update, what the stage says it drew, and its last logged shares."""
    data, part = mixtures()[name]
    stages = [Stage("one", "6 steps", train_dataset=part)]
    trainer = staged(out, stages, batch, accumulation, kind=Recorded, train_dataset=data)
    trainer.train()
    shares = {key: value for log in trainer.state.log_history for key, value in log.items() if key.startswith("share_")}
    return trainer.seen, json.loads((out / "01-one" / "stage.json").read_text())["data"], shares


@scenario
def mixture_order(out: Path) -> dict[str, Any]:
    found = {}
    for name in mixtures():
        for how in ((4, 1), (2, 2)) if name == "ramp" else ((4, 1),):
            seen, drawn, shares = mixed(out / f"{name}{how[1]}", name, *how)
            both: list[Any] = [None, None]
            dist.all_gather_object(both, seen)
            found[f"{name}{how[1]}"] = [[sorted(a + b) for a, b in zip(*both, strict=True)], drawn, shares]
    return found


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


def forgetful(out: Path, batch: int, gate: Forgetting | None = None, **changes: Any) -> StagedTrainer:
    """Two sets that count in other strides: the second is learned at the first one's cost, up to a budget."""
    gate = Forgetting("5%", action="rollback") if gate is None else gate
    sets = {}
    for name, stride in (("one", 1), ("two", 7)):
        ids = [[3 + (5 * row + stride * place) % 60 for place in range(12)] for row in range(16)]
        sets[name] = Rows([{"input_ids": row, "labels": row, "attention_mask": [1] * 12} for row in ids])
    stages = [
        Stage("one", "16 steps", train_dataset=sets["one"], args={"eval_strategy": "no"}),
        Stage("two", "8 steps", train_dataset=sets["two"], gates=[gate]),
    ]
    given = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 1e-2,
        "per_device_eval_batch_size": 4,
        "optim": "adamw_torch",
    }
    model = tiny.llama(pad_token_id=0, initializer_range=0.1)
    return staged(out, stages, batch, eval_dataset=sets, model=model, **{**given, **changes})


@scenario
def forgetting(out: Path) -> None:
    trainer = forgetful(out / "run", 4)
    trainer.train()
    same_on_ranks(trainer.model, "the end")


def replayed(out: Path, batch: int, accumulation: int = 1) -> tuple[list[Any], Any, Any]:
    """Rows of each update where a gate mixes in the first set, what the stage says of it, and the model."""
    gate = Forgetting("1%", action="replay", share=0.3)
    trainer = forgetful(out, batch, gate, accumulation=accumulation, kind=Recorded)
    trainer.train()
    stage = json.loads((out / "02-two" / "stage.json").read_text())
    acts = [(e["step"], e["kind"], e.get("value")) for e in stage["ledger"] if e["by"] == "Forgetting"]
    return trainer.seen, [stage["data"], [list(act) for act in acts]], trainer.model


@scenario
def replaying(out: Path) -> dict[str, Any]:
    found = {}
    for name, how in {"4": (4, 1), "2x2": (2, 2)}.items():
        seen, said, model = replayed(out / name, *how)
        same_on_ranks(model, name)
        both: list[Any] = [None, None]
        dist.all_gather_object(both, seen)
        found[name] = [[sorted(a + b) for a, b in zip(*both, strict=True)], said]
    return found


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


ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear"}


# The stages end at 2, 5, 7, 9, 11 and 14: (rank, step, event) asked in their midst and at their last updates.
@scenario
def stop_on_one_rank(out: Path) -> None:
    """Asked on either rank, at any moment, both stop with a checkpoint; resumed, the run is as if never cut."""
    _stop_and_resume(out, [(1, 2, "substep"), (1, 7, "step")])


@scenario
def stop_anywhere(out: Path) -> None:
    _stop_and_resume(out, [(0, 0, "substep"), (0, 3, "substep"), (1, 8, "step"), (0, 11, "substep"), (1, 12, "step")])


def _stop_and_resume(out: Path, moments: list[tuple[int, int, str]]) -> None:
    whole = staged(out / "whole", chain()[:6], 2, 2, **ADAM)
    whole.train()
    for rank, step, event in moments:
        folder = out / f"{rank}-{step}-{event}"
        stop = AskToStop(rank, step, event)
        stop.trainer = cut = staged(folder, chain()[:6], 2, 2, callbacks=[stop], **ADAM)
        try:
            cut.train()
        except RunInterrupted as error:
            agree(str(error).split(":")[0])
        else:
            raise AssertionError(f"rank {rank} at {step} ({event}): nothing was interrupted")
        agree(cut.state.global_step)
        dist.barrier()
        assert step <= cut.state.global_step <= step + 2, f"stopped at {cut.state.global_step}"
        resumed, watch = watched(folder, chain()[:6], 2, 2, **ADAM)
        resumed.train(resume_from_checkpoint=True)
        end, wanted = weights(resumed), weights(whole)
        assert all(torch.equal(end[n], wanted[n]) for n in wanted), f"{folder.name}: not as if never cut"
        assert not any(watch.still.values()), watch.still


@scenario
def boundary_resume(out: Path) -> None:
    """Stopped by an expectation between two stages, on all ranks; resumed without it."""
    whole = staged(out / "whole", chain(), 4, **ADAM)
    whole.train()
    for name in ["plain", "frozen", "resized", "lora", "merged"]:
        stages = chain()
        at = [stage.name for stage in stages].index(name)
        stages[at] = Stage(
            name, stages[at].until, transforms=stages[at].transforms, schedule=stages[at].schedule,
            gates=[Expect("train_loss", high=-1.0)],
        )  # fmt: skip
        try:
            staged(out / name, stages, 4, **ADAM).train()
        except StageStopped as error:
            agree(str(error))
        else:
            raise AssertionError(f"{name}: not stopped")
        dist.barrier()
        resumed, watch = watched(out / name, chain(), **ADAM)
        resumed.train(resume_from_checkpoint=True)
        all_moved(watch, chain()[at + 1 :])
        end, wanted = weights(resumed), weights(whole)
        assert all(torch.equal(end[n], wanted[n]) for n in wanted), f"{name}: not as if never cut"


class Slow(TrainerCallback):
    """Rank 1 has a slow clock."""

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.02 if dist.get_rank() == 0 else 0.05)


@scenario
def time_gate(out: Path) -> None:
    stages = [Stage("a", "400 steps", gates=[Budget("1 seconds")]), Stage("b", "2 steps")]
    trainer, _ = watched(out / "run", stages, callbacks=[Slow()])
    trainer.train()
    assert 2 < agree(trainer.state.global_step) < 100


@scenario
def metric_gates(out: Path) -> None:
    """A metric that the ranks do not agree on (a timing, noise) still ends the stage on all of them at once."""

    def noisy(prediction: Any) -> dict[str, float]:
        noisy.calls += 1
        return {"score": noisy.calls / (3.0 if dist.get_rank() == 0 else 5.0)}

    noisy.calls = 0
    stages = [
        Stage("a", "30 steps", gates=[Above("eval_score", 0.99)], args={"eval_strategy": "steps", "eval_steps": 2}),
        Stage("b", "4 steps", gates=[Expect("eval_score", high=2.45, action="warn")]),
        Stage("c", "2 steps"),
    ]
    trainer, _ = watched(out / "run", stages, compute_metrics=noisy, eval_dataset=Rows(CASES["causal"].rows()))
    trainer.train()
    agree(trainer.state.global_step)
    assert trainer.state.global_step == 4 + 4 + 2  # once before the first update, then at 2 and 4


@scenario
def evaluation(out: Path) -> None:
    """Seven ragged rows in batches of two: the rows that fill the last ones count once, in the loss and in teachers' terms."""
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


class OneRank(Loss):
    """NaN on one rank; or without any item; or exactly zero."""

    def __init__(self, how: str) -> None:
        self.how = how

    name = "OneRank"

    def items(self, batch):
        return 0 if self.how == "empty" else batch["labels"].shape[0]

    def __call__(self, student, teacher, batch, t):
        value = student.logits.sum()
        if self.how == "nan" and dist.get_rank() == 1:
            return value * float("nan")
        if self.how == "half":
            return value if dist.get_rank() == 1 else value * 0.0
        return value.detach() if self.how == "no graph" else value * 0.0


@scenario
def refusals(out: Path) -> None:
    """An error on all ranks together, before the optimizer's step."""
    expected = {
        "nan": ("not finite on another rank", "OneRank: its value is nan"),
        "empty": ("OneRank: an update without a single item",) * 2,
        "no graph": ("OneRank: its value has no graph",) * 2,
        "zero": ("OneRank: exactly zero for 20 updates",) * 2,
    }
    for how, messages in expected.items():
        model = tiny.llama()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainer = staged(
            out / how.replace(" ", "-"),
            [Stage("a", "30 steps", loss=TaskLoss() + 1e-3 * OneRank(how))],
            2,
            2,
            model=model,
        )
        with pytest.raises(ValueError, match=messages[dist.get_rank()]):
            trainer.train()
        agree(trainer.state.global_step)
        if how != "zero":
            assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), f"{how}: it stepped"
    # zero on one rank alone is not broken
    staged(out / "half", [Stage("a", "21 steps", loss=TaskLoss() + 1e-6 * OneRank("half"))], 2, 2).train()


@scenario
def unlabelled(out: Path) -> None:
    """One rank's micro-batches hold no label: they contribute nothing. No rank has any: an error on both."""
    rows = text(lambda g, ids: ids)()
    half = [{**r, "labels": [-100] * len(r["labels"])} if i % 4 > 1 else r for i, r in enumerate(rows)]
    stage = Stage("a", "1 steps", args={"train_sampling_strategy": "sequential"})
    trainer, watch = watched(out / "half", [stage], 2, 2, train_dataset=Rows(half))
    trainer.train()
    all_moved(watch, [stage])
    none = [{**r, "labels": [-100] * len(r["labels"])} for r in rows]
    with pytest.raises(ValueError, match="TaskLoss: an update without a single item"):
        staged(out / "none", [stage], 2, 2, train_dataset=Rows(none)).train()
