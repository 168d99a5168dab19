"""A run of two stages whose gate replays the first one's data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from datasets import Dataset

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Const, Linear
from hf_stages.data import ByLength, Mixture
from hf_stages.gates import Forgetting
from hf_stages.schedules import Fresh
from tests.support import tiny
from tests.support.sameness import plain
from tests.workers.cases import Pad, arguments


def counting(stride: int, rows: int, seed: int, length: int = 8) -> Dataset:
    starts = torch.randint(0, 60, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [[3 + (start + stride * i) % 60 for i in range(length)] for start in starts]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


# An epoch of ``code`` is five updates of eight, and the evaluations come after 3, 6 and 9: in the midst of one.
DATA = {"prose": counting(1, 30, 0), "code": counting(7, 34, 1), "more": counting(11, 10, 2, 5)}
STEPS = 12
PARTS = {
    "plain": "code",
    "ramp": Mixture({"code": Linear(1, 0.5), "more": Linear(0, 0.5)}),
    "tokens": Mixture({"code": 1, "more": 1}, weigh="tokens"),
    "lengths": ByLength("code", tokens=16),
    "stream": "code",
    "stream-tokens": Mixture({"code": 1, "more": 1}, weigh="tokens"),
}
GATE = {"budget": 0.0, "action": "replay", "share": 0.2, "most": 0.6}


@dataclass(frozen=True)
class Strict(Forgetting):
    """Finds every evaluation outside."""

    def _rounds(self, history):
        return [(log["step"], (1.0, "too much")) for log in history.logs if "eval_prose_loss" in log]


class Recorded(StagedTrainer):
    """Notes which rows each update saw."""

    stop_at = None

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.__dict__.setdefault("seen", []).append([row.tolist() for batch in batches for row in batch["input_ids"]])
        assert not any("drawn" in batch for batch in batches)
        if self.stop_at == len(self.seen):
            self.request_stop("here")
        return batches, items


def trainer(out, name="plain", *, gate=None, part=None, stage=None, data=None, before=None, batch=4, **changes):
    given = {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2, "save_steps": 50, **changes}
    args = arguments(out, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch, **given)
    data = dict(DATA) if data is None else data
    if "stream" in name:
        data["code"] = data["code"].to_iterable_dataset()
    gate = Strict(**GATE) if gate is None else gate
    stages = [
        Stage("first", "3 steps", train_dataset="prose", args={"eval_strategy": "no"}, **(before or {})),
        Stage(
            "second",
            f"{STEPS} steps",
            train_dataset=PARTS[name] if part is None else part,
            schedule=Fresh(peak=5e-2, shape=Const(1)),
            gates=gate if isinstance(gate, list) else [gate],
            **(stage or {}),
        ),
    ]
    sets = {name: DATA[name].select(range(2)) for name in ("prose", "code")}
    model = tiny.llama(initializer_range=0.1)
    return Recorded(model, args, stages=stages, train_dataset=data, eval_dataset=sets, data_collator=Pad())


def summary(out):
    return plain(out / "02-second" / "stage.json")


def events(out) -> list[tuple[int, float]]:
    return [(e["step"] - 3, e["value"]) for e in summary(out)["ledger"] if e["kind"] == "replay"]
