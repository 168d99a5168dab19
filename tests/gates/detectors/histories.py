"""Logs of runs that never were, healthy ones and sick ones, and what a gate decides on them, log after log."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hf_stages.core.ledger import Entry
from hf_stages.gates import Gate, History

DEPTHS = (1, 4, 8, 16, 32, 64)
KINDS = ("plain", "late correlation", "rate jump", "curriculum", "resumed")


@dataclass
class Story:
    """A stage's log in the making."""

    seed: int
    kind: str = "plain"
    updates: int = 1000
    first_step: int = 0
    every: int = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed} {self.kind}")
        self.every = self.random.choice((5, 10, 25))
        self.start = self.random.uniform(4.0, 10.0)
        self.end = self.random.uniform(1.2, 3.0)
        self.jump = self.random.uniform(1.1, 2.2)
        self.at = self.random.randrange(300, 700)
        self.noise = self.random.uniform(0.005, 0.06)

    def loss(self, step: int) -> float:
        """Fall from ``start`` to ``end``, with noise, and with what the kind of history does to a loss."""
        level = self.end + (self.start - self.end) * math.exp(-step / 120)
        if self.kind == "rate jump":  # a stage that begins with a trained model and a larger rate
            level = self.end * (1 + (self.jump - 1) * math.exp(-(((step - 40) / 40) ** 2)))
        if self.kind == "curriculum" and step >= self.at:
            level *= 1 + (self.jump - 1) * math.exp(-(step - self.at) / 250)
        return level * (1 + self.random.gauss(0, self.noise))

    def correlation(self, step: int) -> float:
        if self.kind == "late correlation":  # near 1, and back within 150 updates
            return 0.15 + 0.83 / (1 + math.exp((step - 140) / 12)) + self.random.gauss(0, 0.005)
        return 0.1 + 0.3 * math.exp(-step / 60) + self.random.gauss(0, 0.02)

    def perplexities(self, step: int) -> dict[str, float]:
        """Depth makes no difference to an untrained model, and helps more the longer it learns."""
        helps = 0.4 * (1 - math.exp(-step / 200))
        level = self.end + (self.start - self.end) * math.exp(-step / 120)
        return {f"eval_ppl_at_{depth}": math.exp(level + helps / depth) for depth in DEPTHS}

    def logs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"step": self.first_step, "eval_loss": self.start, **self.perplexities(0)}]
        for step in range(self.every, self.updates + 1, self.every):
            loss = self.loss(step)
            found.append(
                {
                    "step": self.first_step + step,
                    "loss": loss,
                    "raw_loss": loss,
                    "raw_loss_max": loss * (1 + abs(self.random.gauss(0, self.noise))),
                    "grad_norm": math.exp(self.random.gauss(0, 0.3)) * (1 + 9 * math.exp(-step / 30)),
                    "token_correlation": self.correlation(step),
                    "dead_layers": float(self.random.random() < 0.02),
                    "saturated_layers": float(self.random.random() < 0.02),
                    "dead_heads": float(self.random.random() < 0.02),
                    "data_wait": min(1.0, self.random.expovariate(12)),
                }
            )
            if step % 100 == 0:
                found.append({"step": self.first_step + step, "eval_loss": loss, **self.perplexities(step)})
        return found


def healthy() -> Iterator[Story]:
    """Fifty histories in which nothing is wrong, ten of each kind."""
    for seed in range(10):
        for kind in KINDS:
            yield Story(seed, kind, first_step=500 if kind == "resumed" else 0)


def decisions(gate: Gate, logs: list[dict[str, Any]], first_step: int = 0) -> list[Entry]:
    """Ask a gate after each log, as a stage does, with the ledger that its own decisions make."""
    entries: list[Entry] = []
    for count, log in enumerate(logs, start=1):
        step = log["step"] - first_step
        if step <= 0:  # nobody is asked before the first update
            continue
        history = History(step, logs=logs[:count], entries=tuple(entries), first_step=first_step)
        if (found := gate(history)) is not None:
            entries.append(Entry(log["step"], "a", found.action, found.reason, type(gate).__name__, found.value))
    return entries
