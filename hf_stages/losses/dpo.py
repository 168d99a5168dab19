"""Train by preferences: the chosen answer becomes likelier than the rejected one, compared with a reference model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax, logsigmoid
from torch.utils.checkpoint import checkpoint

from hf_stages.core.curves import Curve, as_curve
from hf_stages.losses.base import Loss
from hf_stages.models.outputs import check_same, outputs_of
from hf_stages.models.signals import Head

_CHUNK = 2**25
"""Logits in memory at a time, as in LogitKL."""


@dataclass(frozen=True)
class DPO(Loss):
    """Direct preference optimization (arXiv 2305.18290): ``-log sigmoid(beta z)`` for each pair.

    z says how much more the student prefers the chosen answer than the teacher, the reference, does, in summed
    log-probabilities of the tokens that have a label. Rows come in pairs, a chosen one and then its rejected one, as
    ``Preferences`` collates them.

    The log says how often the chosen answer is ahead (``DPO_accuracy``) and by how much (``DPO_margin``, the mean of
    beta z). ``DPO_chosen`` and ``DPO_rejected`` are beta times how much likelier each answer is than under the
    reference. A margin that grows while both fall is the usual sign of a learning rate that is too high.

    >>> DPO(beta=0.2)
    DPO(beta=0.2, label_smoothing=0.0)
    """

    beta: float | Curve = 0.1
    """How strongly the student is held to the reference; a curve is taken, too."""
    label_smoothing: float = 0.0
    """How often preferences are assumed to be the wrong way round (conservative DPO)."""

    logged_names = ("accuracy", "margin", "chosen", "rejected")
    uses_teacher = True
    needs = frozenset({"final"})
    teacher_needs = frozenset({"final"})

    def __post_init__(self) -> None:
        if isinstance(self.beta, str):
            object.__setattr__(self, "beta", as_curve(self.beta))
        for step in range(101):
            value = as_curve(self.beta)(step / 100)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"DPO: beta: expected more than 0, got {value}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"DPO: label_smoothing: expected 0 or more and less than 0.5, got {self.label_smoothing!r}"
            )

    def for_models(self, student: Any, teacher: Any) -> DPO:
        mine = outputs_of(student, "DPO")
        if mine.kind not in (None, "next"):
            raise ValueError(
                f"DPO: expected a causal language model, got {mine.model}, which gives {mine.meaning}; "
                "encoder-decoders are not supported"
            )
        if teacher is not None:
            check_same(mine, outputs_of(teacher, "DPO"), "DPO")
        return self

    def items(self, batch: Mapping[str, Any]) -> int:
        labels: Any = batch.get("labels")
        if not torch.is_tensor(labels) or labels.dim() != 2 or len(labels) % 2:
            found = (
                f"labels of {tuple(labels.shape)}" if torch.is_tensor(labels) else f"only {', '.join(sorted(batch))}"
            )
            raise ValueError(
                f"DPO: expected labels of pairs of rows (chosen, rejected), got {found}; data_collator=Preferences() "
                "makes them"
            )
        return len(labels) // 2

    def __call__(
        self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels: Any = batch["labels"]
        mine = _log_probabilities(student.final, labels)
        with torch.no_grad():
            theirs = _log_probabilities(teacher.final, labels).to(mine.device)
        gain = as_curve(self.beta)(t) * (mine - theirs).view(-1, 2)
        z = gain[:, 0] - gain[:, 1]
        wrong = self.label_smoothing
        value = -((1 - wrong) * logsigmoid(z) + wrong * logsigmoid(-z)).sum()
        logged = torch.stack([z > 0, z, gain[:, 0], gain[:, 1]]).detach()
        return value, logged.sum(1)


def _log_probabilities(final: torch.Tensor | Head, labels: torch.Tensor) -> torch.Tensor:
    """Sum the log-probabilities of each row's labels: (rows,). Position i predicts label i + 1."""
    states, module = (final.hidden, final.module) if isinstance(final, Head) else (final, None)
    if states.shape[:2] != labels.shape:
        raise ValueError(
            f"DPO: expected outputs for {tuple(labels.shape)} tokens, got {tuple(states.shape[:2])}; a model that "
            "adds tokens (prompt tuning) is not supported"
        )
    labels = labels.to(states.device)
    asked = labels[:, 1:].ne(-100)
    rows, targets = asked.nonzero()[:, 0], labels[:, 1:][asked]
    states = states[:, :-1][asked]

    def of(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = states if module is None else module(states)
        return log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]

    width = states.shape[-1] if module is None else getattr(module, "out_features", states.shape[-1])
    step = max(1, _CHUNK // width)
    # Computed again in the backward pass, so that only one chunk of a large vocabulary's logits exists at a time.
    found = [
        checkpoint(of, states[i : i + step], targets[i : i + step], use_reentrant=False)
        for i in range(0, max(len(states), 1), step)
    ]
    return found[0].new_zeros(len(labels)).index_add(0, rows, torch.cat(found))
