"""Scenarios for two ranks of DDP: which rows each update sees, of plain data, mixtures and what gates replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.data import ByLength, Mixture, Replay
from hf_stages.gates import Forgetting
from tests.support import tiny
from tests.workers.cases import Rows
from tests.workers.ranks import (
    Recorded,
    same_on_ranks,
    scenario,
    staged,
)


def of_both_ranks(seen: list[Any]) -> list[Any]:
    """The rows that each update saw on the two ranks together, in an order that does not depend on the rank."""
    both: list[Any] = [None, None]
    dist.all_gather_object(both, seen)
    return [sorted(mine + theirs) for mine, theirs in zip(*both, strict=True)]


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


@scenario
def data_order(out: Path) -> dict[str, Any]:
    found = {}
    for name, how in {"4": (4, 1), "2x2": (2, 2)}.items():
        found[name] = of_both_ranks(order(out / name, *how))
    return {**found, "stream": of_both_ranks(order(out / "stream", 4, stream=True))}


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
            found[f"{name}{how[1]}"] = [of_both_ranks(seen), drawn, shares]
    return found


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
        found[name] = [of_both_ranks(seen), said]
    return found
