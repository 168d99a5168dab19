"""Watch the terms of a stage: refuse values that are not finite, and report values that stay exactly zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.utils import logging

from hf_stages.core.errors import LossNotFinite
from hf_stages.losses.objective.terms import Term

logger = logging.get_logger(__name__)
_LIMIT = 20
"""How many updates a term may be exactly zero. A fresh adapter that learns from its own base is zero for one."""


class TermHealth:
    """Sum up an update by term and, where a loss names them, by its parts (layers).

    Args:
        terms: The stage's terms.
        device: Where the sums are kept.
        world: How many ranks train.
    """

    def __init__(self, terms: Sequence[Term], device: torch.device, world: int) -> None:
        self.terms, self.world = tuple(terms), world
        self.parts = [(i, part) for i, term in enumerate(self.terms) for part in (term.loss.part_names or ("",))]
        self.places = [[k for k, (j, _) in enumerate(self.parts) if j == i] for i in range(len(self.terms))]
        self.sums = torch.zeros(len(self.parts), device=device)
        self.noted = torch.zeros(2, len(self.parts), device=device)
        """How many micro-batches of the update were noted, and in how many of them a zero is meaningful."""
        self.zeros = torch.zeros(len(self.parts), device=device)
        self.warned: set[int] = set()

    def open_update(self) -> None:
        self.sums.zero_()
        self.noted.zero_()

    def note(self, index: int, share: torch.Tensor, zero_is_meaningful: Any = True) -> None:
        """Add a micro-batch's share of a term: one number, or one for each of the loss's parts."""
        first, last = self.places[index][0], self.places[index][-1]
        self.sums[first : last + 1] += share.detach()
        self.noted[0, first : last + 1] += 1
        self.noted[1, first : last + 1] += zero_is_meaningful

    def finite(self) -> torch.Tensor:
        return torch.isfinite(self.sums).all()

    def refuse_not_finite(self, t: float) -> None:
        """Name the first part that is not finite on this rank."""
        for place, (index, part) in enumerate(self.parts):
            if not torch.isfinite(self.sums[place]):
                where = f", layers {part} (student-teacher)" if part else ""
                raise LossNotFinite(
                    f"loss {self.terms[index].name}: its value is {self.sums[place].item()}{where} at t={t:.4g}; "
                    "nothing was stepped. Resume from the last checkpoint with a lower learning rate, or check the "
                    "data and the precision"
                )

    def close_update(self, t: float, updates: int) -> None:
        zero = self.sums == 0
        if idle := [k for k, (i, _) in enumerate(self.parts) if self.terms[i].weight(t) == 0]:
            zero[idle] = False  # not computed, so its zero says nothing
        counted = torch.where(zero, self.zeros + 1, torch.zeros_like(self.zeros))
        silent = (self.noted[0] > 0) & (self.noted[1] == 0)  # no row of its source in this update
        self.zeros = torch.where(silent, self.zeros, counted)
        if updates % _LIMIT == 0:
            self._check_zeros(t)

    def _check_zeros(self, t: float) -> None:
        zeros = self.zeros.clone()
        if self.world > 1:
            torch.distributed.all_reduce(zeros, op=torch.distributed.ReduceOp.MIN)
        counts = zeros.tolist()
        still = [count >= _LIMIT for count in counts]
        for index, (term, places) in enumerate(zip(self.terms, self.places, strict=True)):
            layers = [self.parts[k][1] for k in places if still[k] and self.parts[k][1]]
            whole = term.weight(t) > 0 and all(still[k] for k in places)
            if whole and "loss" not in term.loss.needs:
                raise ValueError(
                    f"loss {term.name}: exactly zero for {int(min(counts[k] for k in places))} updates although its "
                    f"weight is {term.weight(t):.4g}{_layers_text(layers)}; what it compares is equal or was not "
                    "captured. Is the teacher the student itself, or all that the term could change frozen? Then "
                    "leave the term out"
                )
            if whole and index not in self.warned:  # the model's own: everything may have been learned
                self.warned.add(index)
                logger.warning(
                    f"loss {term.name}: exactly zero for {_LIMIT} updates; the stage teaches nothing any more"
                )
            if layers and index not in self.warned:  # frozen embeddings, say, that were copied from the teacher
                self.warned.add(index)
                logger.warning(
                    f"loss {term.name}: exactly zero for {_LIMIT} updates{_layers_text(layers)}; these layers are "
                    "equal and teach nothing"
                )

    def state_dict(self) -> dict[str, Any]:
        return {"zeros": self.zeros.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.zeros = torch.tensor(state["zeros"], device=self.zeros.device)


def _layers_text(layers: Sequence[str]) -> str:
    return f", layers {', '.join(layers)} (student-teacher)" if layers else ""
