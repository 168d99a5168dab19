"""The scales of ``Balanced`` terms: they bring each running norm to that of the group's first term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hf_stages.losses.balanced import Balanced
from hf_stages.losses.objective.terms import Term


class Balance:
    """Keep running norms of a stage's terms, and give the scale of each term.

    A norm that is zero (a term of weight zero, a satisfied hinge) or not finite says nothing about the size of a term.
    It leaves the running norm as it is. A term's scale is 1 until the term and its reference have been measured.
    Nothing here waits for the device. Every rank must be given the same norms.

    Args:
        terms: The stage's terms.
        groups: The ``Balanced`` losses that ``Term.balance`` numbers.
        device: Where the norms are kept.
    """

    def __init__(self, terms: Sequence[Term], groups: Sequence[Balanced], device: torch.device | str = "cpu") -> None:
        self.groups = tuple(groups)
        self.group = [term.balance for term in terms]
        device = torch.device(device)
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        n = len(self.group)
        first = {group: self.group.index(group) for group in self.group}
        # Outside of groups a term is its own reference, so that its scale is 1 whatever it is given.
        references = [i if group is None else first[group] for i, group in enumerate(self.group)]
        self.reference = torch.tensor(references, dtype=torch.long, device=device)
        momenta = [0.0 if group is None else self.groups[group].momentum for group in self.group]
        self.momentum = torch.tensor(momenta, dtype=exact, device=device)
        limits = [1.0 if group is None else float(self.groups[group].limit) for group in self.group]
        self.limit = torch.tensor(limits, dtype=exact, device=device)
        self.means = torch.zeros(n, dtype=exact, device=device)
        """Running means that began at zero and are not yet corrected for it."""
        self.counts = torch.zeros(n, dtype=torch.long, device=device)
        self._before = (self.means, self.counts)

    def due(self, update: int, by: str) -> list[int]:
        """List the terms to measure in this update (counted from 0), by their ``"gradient"`` or their ``"loss"``."""
        now = {i for i, group in enumerate(self.groups) if group.by == by and update % group.every == 0}
        return [i for i, group in enumerate(self.group) if group in now]

    def update(self, norms: torch.Tensor) -> None:
        """Take in the norms of one optimizer step: one for each term, zero where it was not measured."""
        norms = norms.detach().to(self.means)
        valid = torch.isfinite(norms) & (norms > 0)
        mean = self.momentum * self.means + (1 - self.momentum) * norms
        self._before = (self.means, self.counts)
        self.means = torch.where(valid, mean, self.means)
        self.counts = self.counts + valid

    def undo(self, where: torch.Tensor) -> None:
        """Forget the last update, where that is true (of one number)."""
        means, counts = self._before
        self.means = torch.where(where > 0, means, self.means)
        self.counts = torch.where(where > 0, counts, self.counts)

    def norms(self) -> torch.Tensor:
        """Return the running norms, zero where nothing was measured."""
        # A mean that began at zero is too small by the weight that its beginning still has (Adam's correction).
        weight = 1 - self.momentum**self.counts
        return torch.where(self.counts > 0, self.means / weight, self.means)

    def scales(self) -> torch.Tensor:
        """Return what to multiply each term by."""
        norms = self.norms()
        references = norms[self.reference]
        found = torch.where((norms > 0) & (references > 0), references / norms, torch.ones_like(norms))
        return torch.minimum(found, self.limit)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means.tolist(), "counts": self.counts.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["means"]) != len(self.group):
            raise ValueError(
                f"balance: the checkpoint holds {len(state['means'])} terms, the stage has {len(self.group)}; "
                "resume with the loss that the run was made with"
            )
        self.means = torch.tensor(state["means"], dtype=self.means.dtype, device=self.means.device)
        self.counts = torch.tensor(state["counts"], dtype=torch.long, device=self.counts.device)


def gradient_norms(shares: Sequence[torch.Tensor], parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the squared norm of each share's gradient, over all parameters together. Their ``.grad`` is not touched.

    This costs one backward pass for each share, and keeps the graph for the backward pass that trains. A share without
    a graph has norm 0.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.stack([_squared(share, trained) for share in shares])


def _squared(share: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    none = torch.zeros((), dtype=torch.float32, device=share.device)
    if not share.requires_grad or not parameters:
        return none
    found = torch.autograd.grad(share, parameters, retain_graph=True, allow_unused=True)
    # In float32 at least: squares of half-precision gradients underflow.
    squares = [torch.linalg.vector_norm(g, dtype=torch.float32).square() for g in found if g is not None]
    return torch.stack(squares).sum() if squares else none
