"""Train the gate by which tokens leave a recurrent core early, and with it predictions after every cycle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from hf_stages.core.curves import Curve, as_curve
from hf_stages.layers.adaptive_exit import Cycles, exit_shares
from hf_stages.layers.recurrent import find_recurrence
from hf_stages.losses.base import Loss, adapted
from hf_stages.losses.target_logits import Targets
from hf_stages.models.outputs import outputs_of


@dataclass(frozen=True)
class HaltingLoss(Loss):
    """The cross-entropy that is expected where each token leaves by its gate, less ``beta`` times the gate's entropy.

    Ouro's objective (https://arxiv.org/abs/2510.25741) for ``MakeRecurrent(..., exit="gate")``, in place of
    ``TaskLoss``: every cycle is read out by coda and head, and costs as much. The entropy keeps the gate from settling
    on one depth. Of a deeper micro-batch, the last ``backprop`` cycles count. The log has the mean ``cycles`` at which
    tokens would leave, counted among those.

    >>> HaltingLoss(beta=0.05)
    HaltingLoss(beta=0.05)
    """

    beta: float | Curve = 0.1
    """The weight of the entropy, in nats; a curve is taken, too."""

    needs = frozenset({"final", "cycles"})
    logged_names = ("entropy", "cycles")
    _targets: ClassVar[Targets] = Targets("next")

    def __post_init__(self) -> None:
        if not all(as_curve(self.beta)(i / 16) >= 0 for i in range(17)):
            raise ValueError(f"HaltingLoss: beta: expected 0 or more, got {self.beta!r}")

    def for_models(self, student: Any, teacher: Any) -> HaltingLoss:
        core = find_recurrence(student)
        if core is None or core.gate is None:
            raise ValueError(
                f"HaltingLoss: {type(student).__name__} has no gate to train; put MakeRecurrent(..., exit='gate') "
                "among the stage's transforms, or train by TaskLoss()"
            )
        mine = outputs_of(student, "HaltingLoss")
        if mine.kind != "next":
            raise ValueError("HaltingLoss: expected a causal language model, which predicts the next token")
        return adapted(self, _targets=Targets("next", "labels", mine.pad))

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self._targets.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> Any:
        cycles: Cycles = student["cycles"]
        head = cycles.head
        if head is None:
            raise ValueError("HaltingLoss: the model changes its head's output; expected logits as the head gives them")
        index = self._targets.index(batch, cycles.states[0].shape[:-1]).to(cycles.states[0].device)
        labels = _next_labels(batch).to(index.device).flatten()[index]
        shares = exit_shares(torch.stack([gate.flatten()[index] for gate in cycles.leaving]))
        losses = torch.stack([_cross_entropy(head, state.flatten(0, -2)[index], labels) for state in cycles.states])
        entropy = torch.special.entr(shares).sum(0)
        value = (shares * losses).sum() - as_curve(self.beta)(t) * entropy.sum()
        places = torch.arange(1, len(shares) + 1, device=shares.device)[:, None]
        return value, torch.stack([entropy.sum(), (shares * places).sum()]).detach()


def _cross_entropy(head: Any, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(states).float(), labels, reduction="none")


def _next_labels(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the token that follows each one."""
    labels: Any = batch.get("shift_labels")
    if labels is not None:
        return labels
    labels = batch["labels"] if batch.get("labels") is not None else batch["input_ids"]
    return torch.cat((labels[..., 1:], labels[..., :1]), dim=-1)  # after the last comes nothing, and it is no target
