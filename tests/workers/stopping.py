"""Scenarios for two ranks of DDP: cuts, gates and errors, on all ranks together."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hf_stages import Stage
from hf_stages.core.folder_lock import lock_folder
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.gates import Above, Budget, CutRate, Detector, EndStage, Expect, Finding
from hf_stages.losses import Loss, TaskLoss
from tests.support import tiny
from tests.workers.cases import CASES, Rows, text
from tests.workers.ranks import (
    ADAM,
    AskToStop,
    agree,
    all_moved,
    chain,
    scenario,
    staged,
    watched,
    weights,
)


@scenario
def occupied(out: Path) -> None:
    """A folder that another run holds is refused on all ranks together, not on the one that writes alone."""
    trainer = staged(out / "run", [Stage("a", "1 step")], 4)
    with lock_folder(out / "run") if dist.get_rank() == 0 else nullcontext():
        dist.barrier()
        with pytest.raises(ValueError, match="writes into this folder"):
            trainer.train()
        dist.barrier()
    trainer.train()


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


class SoonerOnRank0(Detector):
    """Finds trouble from the third update on, and on rank 1 two updates later."""

    def find(self, history):
        return Finding("late") if history.step >= 3 + 2 * dist.get_rank() else None


@scenario
def told_once(out: Path) -> None:
    """What a detector finds on rank 0 holds on both ranks, and rank 0 alone tells of it."""
    told: list[Any] = []
    stage = Stage("a", "9 steps", gates=[SoonerOnRank0(then=[CutRate(0.5), EndStage()])])
    trainer = staged(out / "run", [stage], 4, notify=told.append, logging_steps=1)
    trainer.train()
    agree([log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log])
    assert trainer.state.global_step == 4
    decided = [(3, "cut_lr"), (4, "end")] if dist.get_rank() == 0 else []
    assert [(alert.step, alert.kind) for alert in told] == decided


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
