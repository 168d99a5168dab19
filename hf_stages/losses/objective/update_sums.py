"""Compute the loss of an update: each term's sum, divided once by its items over the whole update.

The items of all accumulated micro-batches on all ranks are counted and all-reduced before the first backward.
That makes the gradient the same for one batch of 8, for 4 accumulated x 2 and for 2 ranks x 4, and for any padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hf_stages.core.errors import LossNotFinite
from hf_stages.losses.balanced import Balanced
from hf_stages.losses.base import value_and_logged
from hf_stages.losses.objective.balance import Balance, gradient_norms
from hf_stages.losses.objective.depends_on_weights import reaches_weights
from hf_stages.losses.objective.judged_sums import JudgedSums
from hf_stages.losses.objective.term_health import TermHealth
from hf_stages.losses.objective.terms import Term, terms_with_weight
from hf_stages.models.real_tokens import real_tokens
from hf_stages.models.reduction import Reduction
from hf_stages.models.signals import Signals


class Objective:
    """The terms of a stage, the update that they are summed over, and what the log will say of them.

    Args:
        terms: The terms, adapted to the models.
        device: Where sums are kept.
        world: How many ranks train.
        groups: The ``Balanced`` losses that ``Term.balance`` numbers.
        parameters: The weights over which norms of gradients are taken.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        device: torch.device,
        world: int,
        groups: Sequence[Balanced] = (),
        parameters: Sequence[torch.Tensor] = (),
    ) -> None:
        self.terms = tuple(terms)
        self.balance = Balance(terms, groups, device) if groups else None
        self.parameters = parameters
        self.scales: torch.Tensor | None = None
        self.device, self.world = device, world
        n = len(self.terms)
        self.count_dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.items = torch.zeros(n, dtype=self.count_dtype, device=device)
        self.update_sums = torch.zeros(n, device=device)
        self.log_sums = torch.zeros(n, device=device)
        self.log_updates = 0
        self.logged = {
            i: torch.zeros(len(t.loss.logged_names), device=device)
            for i, t in enumerate(self.terms)
            if t.loss.logged_names
        }
        own = [term.loss.modules for term in self.terms if term.loss.modules is not None]
        self.own_weights = {id(weight) for modules in own for weight in modules.parameters()}
        """The losses' own weights, by id. A gradient that reaches only these leaves the model as it is."""
        self.health = TermHealth(self.terms, device, world)
        self.updates = 0
        self.t = 0.0
        self.reduction_is_known = False
        """Whether it has been found out what the task's loss is a mean over."""
        self.part_items = self.items[:0]
        self.judged: JudgedSums | None = None
        """What is kept beside, where updates are judged before they are stepped."""

    @property
    def needs_task_loss(self) -> bool:
        return any("loss" in term.loss.needs for term in terms_with_weight(self.terms, self.t))

    def reads_outputs(self, batch: Mapping[str, Any]) -> bool:
        """Tell whether outputs are needed: by another term, or for the graph of a batch without targets."""
        lone = len(self.terms) == 1 and self.terms[0].loss.needs == {"loss"} and not self.terms[0].loss.uses_teacher
        return not lone or float(self.terms[0].loss.items(batch)) == 0

    def task_items(self, batch: Mapping[str, Any]) -> Any:
        """Count the items of the task's loss in a micro-batch."""
        return next(term.loss.items(batch) for term in self.terms if "loss" in term.loss.needs)

    @property
    def tasks(self) -> list[Any]:
        """The TaskLoss of each term that has one and takes what is found out about the model's division."""
        return [term.loss.task for term in self.terms if term.loss.task is not None and term.loss.task.finds_reduction]

    def set_reduction(self, reduction: Reduction | None) -> None:
        self.reduction_is_known = True
        for task in self.tasks:
            task.set_reduction(reduction)

    @property
    def reduction(self) -> Reduction | None:
        return self.tasks[0].reduction if self.tasks else None

    def open_update(self, batches: Sequence[Mapping[str, Any]], t: float, extras: Sequence[float]) -> torch.Tensor:
        """Count the items of an update on all ranks. Returns [tokens, *extras], summed in the same all-reduce."""
        counts: list[Any] = [sum(term.loss.items(batch) for batch in batches) for term in self.terms]
        split = self.reduction if self.reduction is not None and self.reduction.split else None
        parts = (
            [sum(items) for items in zip(*map(split.items_by_part, batches), strict=True)] if split is not None else []
        )
        tokens = sum(tokens_in_batch(batch) for batch in batches)
        values = [*counts, *parts, tokens, *extras]
        totals = torch.stack([torch.as_tensor(v, dtype=self.count_dtype, device=self.device) for v in values])
        if self.world > 1:
            torch.distributed.all_reduce(totals)
        n = len(self.terms)
        self.items, self.part_items, self.t = totals[:n], totals[n : n + len(parts)], t
        for i, term in enumerate(self.terms):
            if term.loss.summed:
                self.items[i].clamp_(max=1)
            elif parts and term.loss.task is not None and bool((self.part_items == 0).any()):
                self.items[i] = 0  # one mean of nothing, and so is the whole
        self.update_sums.zero_()
        self.squared_norms: torch.Tensor | None = None
        self.health.open_update()
        self.scales = self.balance.scales() if self.balance is not None else None
        if self.judged is not None:
            self.judged.open_update(self.logged)
        return totals[n + len(parts) :]

    def part_shares(self, batch: Mapping[str, Any]) -> list[Any]:
        """Return factors for the parts of the model's loss, so that each is divided by its own items of the update.

        The whole loss is multiplied by the micro-batch's share of the rows, and each part should have its share of
        its own items. So this is the ratio of the two.
        """
        split = self.reduction
        if split is None or not split.split:
            return []
        place = next(i for i, term in enumerate(self.terms) if term.loss.task is not None)
        share = split.items(batch) / self.items[place]
        own = zip(split.counts, split.items_by_part(batch), self.part_items, strict=True)
        return [(1.0 if count is None else items / all_) / share for count, items, all_ in own]

    def loss(self, student: Signals, teacher: Signals | None, batch: Mapping[str, Any]) -> torch.Tensor:
        """Compute the weighted loss of one micro-batch, ready for a backward pass under DDP's averaging."""
        total: torch.Tensor | None = None
        shares: dict[int, torch.Tensor] = {}
        computed = terms_with_weight(self.terms, self.t)
        for i, term in enumerate(self.terms):
            if term not in computed:
                continue
            weight = term.weight(self.t)
            part, logged = value_and_logged(term.loss(student, teacher, batch, self.t))
            if logged is not None:
                self.logged[i] += logged.to(self.logged[i]) / self.items[i]
            if not reaches_weights(part, self.own_weights):
                raise ValueError(
                    f"loss {term.name}: "
                    f"{'its gradient reaches no weight' if part.requires_grad else 'its value has no graph'}, so it "
                    "would train nothing: all that it reads is frozen, or it was computed under detach() or no_grad(); "
                    "leave the term out, or unfreeze"
                )
            share = part / self.items[i]
            self.health.note(i, share, term.loss.zero_is_meaningful(batch))
            share = shares[i] = share.sum()
            self.update_sums[i] += share.detach()
            part = share * (weight * self.world)
            if self.scales is not None:
                part = part * self.scales[i].to(part.dtype)
            total = part if total is None else total + part
        if total is None:
            raise ValueError(f"loss: every weight is zero at t={self.t:.4g}, so nothing would be trained")
        if self.balance is not None and self.squared_norms is None:
            self._measure(shares)
        if self.judged is not None:
            self.judged.add(total / self.world)
        return total

    def _measure(self, shares: Mapping[int, torch.Tensor]) -> None:
        """Measure norms of gradients, on the first micro-batch only: each term costs one more backward pass."""
        assert self.balance is not None
        self.squared_norms = torch.zeros(len(self.terms), device=self.device)
        if due := [i for i in self.balance.due(self.updates, "gradient") if i in shares]:
            self.squared_norms[due] = gradient_norms([shares[i] for i in due], self.parameters)

    def _rebalance(self) -> None:
        """Update the balance once in an update, from norms that are the same on every rank."""
        assert self.balance is not None
        assert self.squared_norms is not None
        measured = torch.stack([self.squared_norms / self.world, self.update_sums])
        if self.world > 1:
            torch.distributed.all_reduce(measured)
        norms = measured[0].sqrt()
        by_loss = self.balance.due(self.updates, "loss")
        norms[by_loss] = measured[1, by_loss].abs()
        self.balance.update(norms)

    def scales_by_name(self) -> dict[str, float]:
        """Return what the update at hand multiplies balanced terms by."""
        scales = [1.0] * len(self.terms) if self.scales is None else self.scales.tolist()
        return {term.name: scale for term, scale in zip(self.terms, scales, strict=True) if term.balance is not None}

    def weights(self) -> list[float]:
        """Return the weight that each term has in the update at hand."""
        return [term.weight(self.t) for term in self.terms]

    def judge_updates(self, *, forgives: bool) -> None:
        """Keep what is needed to judge each update before it is stepped.

        Args:
            forgives: Whether one that is not finite is left to the judge, instead of ending the run.
        """
        self.judged = JudgedSums(self.device, self.world, forgives)

    def close_update(self, loss: torch.Tensor) -> None:
        """End an update, after its last backward pass: refuse what is not finite, on all ranks together."""
        forgives = self.judged is not None and self.judged.forgives
        if self.judged is not None:
            self.judged.close_update()
        if not forgives:
            self._refuse_not_finite(loss)
        if self.balance is not None:
            self._rebalance()
        if self.judged is not None and forgives:
            self.log_sums, self.logged = self.judged.finite_sums(self.log_sums, self.update_sums, self.logged)
        else:
            self.log_sums += self.update_sums
        self.log_updates += 1
        self.updates += 1
        self.health.close_update(self.t, self.updates)

    def leave_out(self, skipped: torch.Tensor) -> None:
        """Forget what the update has taught the balance of terms, where it is skipped. Nothing waits for the device."""
        if self.balance is not None:
            self.balance.undo(skipped)

    def _refuse_not_finite(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss) & self.health.finite()
        if self.world > 1:
            flag = finite.to(torch.int32)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
            finite = flag.bool()
        if not finite:
            self._not_finite()

    def _not_finite(self) -> None:
        for i, term in enumerate(self.terms):
            if self.items[i] == 0:
                raise ValueError(
                    f"loss {term.name}: an update without a single item (every label of all its micro-batches is "
                    "masked); drop such examples or enlarge the batch"
                )
        self.health.refuse_not_finite(self.t)
        raise LossNotFinite(f"loss: not finite on another rank at t={self.t:.4g}; its own message says which term")

    def count_left_out(self) -> tuple[int, int]:
        """Return how many updates since the last log were not finite, on any rank, and how many there were at all."""
        return round(self.judged.left_out.item()) if self.judged is not None else 0, self.log_updates

    def drain_log(self) -> dict[str, float]:
        """Return the mean of each term since the last log, where there are several, and what the terms log besides."""
        logs = self._means() if len(self.terms) > 1 or self.logged else {}
        for held in (self.log_sums, *self.logged.values()):
            held.zero_()
        if self.judged is not None:
            self.judged.left_out.zero_()
        self.log_updates = 0
        return logs

    def _means(self) -> dict[str, float]:
        names = [f"loss_{term.name}" for term in self.terms]
        names += [f"{self.terms[i].name}_{what}" for i in self.logged for what in self.terms[i].loss.logged_names]
        left_out = [self.judged.left_out / self.world] if self.judged is not None else []
        sums = torch.cat([self.log_sums, *self.logged.values(), *left_out])
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        *values, missing = sums.tolist() if left_out else [*sums.tolist(), 0.0]
        updates = max(self.log_updates, 1) - round(missing)  # 0: of nothing there is no mean
        logs = {name: value / updates for name, value in zip(names, values, strict=True) if updates}
        if len(self.terms) < 2 and logs:
            del logs[names[0]]  # the loss itself
        if self.balance is not None:
            scales = zip(self.terms, self.balance.scales().tolist(), strict=True)
            logs |= {f"scale_{term.name}": scale for term, scale in scales if term.balance is not None}
        return logs

    def state_dict(self) -> dict[str, Any]:
        return {
            "log_sums": self.log_sums.tolist(),
            "log_updates": self.log_updates,
            "told": {i: sums.tolist() for i, sums in self.logged.items()},
            "health": self.health.state_dict(),
            "updates": self.updates,
            "balance": self.balance.state_dict() if self.balance is not None else None,
            "left_out": self.judged.left_out.tolist() if self.judged is not None else [0.0],
            "learned": self.reduction_is_known,
            "reduction": self.reduction.to_dict() if self.reduction is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.log_sums = torch.tensor(state["log_sums"], device=self.device)
        for i, sums in state.get("told", {}).items():
            self.logged[int(i)] = torch.tensor(sums, device=self.device)
        self.health.load_state_dict(state["health"])
        self.log_updates, self.updates = state["log_updates"], state["updates"]
        if self.judged is not None:
            self.judged.left_out = torch.tensor(state.get("left_out", [0.0]), device=self.device)
        if state.get("learned"):
            found = state["reduction"]
            self.set_reduction(None if found is None else Reduction.from_dict(found))
        if self.balance is not None:
            self.balance.load_state_dict(state["balance"])


@contextmanager
def give_item_count(trainer: Any, items: Any) -> Iterator[None]:
    """Give a user's ``compute_loss_func`` the micro-batch's items, so that it returns the mean over them."""
    own = trainer.compute_loss_func
    if own is None:
        yield
        return
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: own(
        outputs, labels, num_items_in_batch=items
    )
    try:
        yield
    finally:
        trainer.compute_loss_func = own


def tokens_in_batch(batch: Mapping[str, Any]) -> Any:
    """Count tokens that are not padding; zero where a batch has no tokens (images)."""
    real = real_tokens(batch)
    if real is not None:
        return real.sum()
    ids: Any = batch.get("input_ids")
    return ids.numel() if torch.is_tensor(ids) else 0
