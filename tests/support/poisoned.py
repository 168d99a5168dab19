"""A mixture in which some rows are bad, each in one of the usual ways: garbage, wrong labels, a number that is NaN."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_stages.core.curves import Step
from hf_stages.data import Mixture
from hf_stages.losses.base import Loss
from hf_stages.reports.incidents import Incident

LENGTH = 12
ODD = 63
"""The token whose rows give NaN under ``NanOn``."""
Named = set[tuple[str, int]]


def poisoned_data(bad: float = 0.12, seed: int = 0) -> tuple[dict[str, Dataset], Named]:
    """Two sources of rows that a tiny model learns at once, some of them spoilt. Also which: (source, number)."""
    draw, found, spoilt = random.Random(seed), {}, set()
    for source, count in (("web", 50), ("books", 30)):
        rows = []
        for number in range(count):
            pair = draw.choice([(5, 9), (11, 6), (8, 14), (20, 7)])
            ids = [pair[place % 2] for place in range(LENGTH)]
            labels = list(ids)
            if draw.random() < bad:
                spoilt.add((source, number))
                labels = [draw.randrange(24, 60) for _ in range(LENGTH)]
                ids = list(labels) if draw.random() < 0.5 else ids  # garbage, or the labels alone
            rows.append({"input_ids": ids, "labels": labels})
        found[source] = Dataset.from_list(rows)
    return found, spoilt


def late_crawl() -> tuple[dict[str, Dataset], Mixture]:
    """Clean sources, and a third one of garbage that joins them at 85 % of the stage. Its rows are the bad ones."""
    data, _ = poisoned_data(bad=0.0)
    draw = random.Random(5)
    rows = [[draw.randrange(24, 60) for _ in range(LENGTH)] for _ in range(20)]
    crawl = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in rows])
    joins = Step(((0, 0.0), (0.85, 0.15)))
    return {**data, "crawl": crawl}, Mixture({"web": 0.6, "books": 0.4, "crawl": joins})


def check_crawl_is_named(incidents: list[Incident]) -> None:
    """At least 90 % of the garbage rows of bad updates stand out, and hardly any other."""
    check_named(incidents, {("crawl", number) for number in range(20)})
    for incident in incidents:
        own = [row for row in incident.rows if row.examples[0]["source"] == "crawl"]
        assert own, "an update without garbage was found bad"
        assert sum(row.stands_out for row in own) >= 0.9 * len(own)


def with_odd_row(data: dict[str, Dataset], source: str, number: int) -> dict[str, Dataset]:
    """The same data, with a row that gives NaN under ``NanOn``."""
    rows = [dict(row) for row in data[source]]
    rows[number] = {"input_ids": [ODD] * LENGTH, "labels": [ODD] * LENGTH}
    return {**data, source: Dataset.from_list(rows)}


@dataclass(frozen=True)
class NanOn(Loss):
    """NaN for rows that begin with ``ODD``, cross-entropy for the others."""

    needs = frozenset({"logits"})

    def items(self, batch: Any) -> Any:
        return batch["labels"][:, 1:].ne(-100).sum()

    def __call__(self, student: Any, teacher: Any, batch: Any, t: float) -> torch.Tensor:
        logits, labels = student.logits[:, :-1].float(), batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
        return (each * torch.where(batch["input_ids"][:, 0].eq(ODD), math.nan, 1.0)).sum()


class RecordFrom(TrainerCallback):
    """Records each update from some update on, before it is stepped."""

    def __init__(self, first: int) -> None:
        self.first, self.trainer = first, None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stage = self.trainer._stage  # type: ignore[union-attr]
        if state.global_step >= self.first:
            stage.gates.incidents.record("it was asked for", by="Test", update=stage.progress.steps + 1)


def named(incidents: list[Incident], *, all_rows: bool = False) -> Named:
    """The rows that stand out, or all of them, as (source, number)."""
    rows = [row for incident in incidents for row in incident.rows if row.stands_out or all_rows]
    return {(one["source"], one["index"]) for row in rows for one in row.examples}


def check_named(incidents: list[Incident], spoilt: Named) -> None:
    """At least 90 % of the spoilt rows stand out, and hardly any other."""
    there, stand_out = spoilt & named(incidents, all_rows=True), named(incidents)
    assert len(there) >= 5, "the updates hold too few spoilt rows to tell"
    assert len(stand_out & there) >= 0.9 * len(there), there - stand_out
    assert len(stand_out - there) <= 0.1 * len(stand_out), stand_out - there


LEARNS = {"optim": "adamw_torch", "learning_rate": 1e-2, "logging_steps": 5}
"""Arguments under which a tiny model learns these rows within 30 updates."""
