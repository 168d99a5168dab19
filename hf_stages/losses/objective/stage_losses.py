"""The losses of one stage at work: its terms adapted to the models, the hooks they need, the weights they bring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_stages.core.curves import Const
from hf_stages.core.stage import Stage
from hf_stages.losses.objective.terms import Term, terms_of, weighted
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.models.capture import WHOLE, Capture
from hf_stages.models.model_inputs import model_inputs
from hf_stages.models.signals import Signals

NAME = "hf_stages_losses"
_FILE = "loss_weights.safetensors"


def adapted_terms(stage: Stage, student: Any, teacher: Any) -> tuple[Term, ...]:
    """The stage's terms for these models, which may be skeletons; what cannot work is refused, by name."""
    loss = stage.loss if stage.loss is not None else TaskLoss()
    try:
        return terms_of(loss, student, teacher)
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: loss: {error}") from error


def wants_teacher(stage: Stage) -> bool:
    return stage.loss is not None and any(term.loss.uses_teacher for term in terms_of(stage.loss))


def needs_of(terms: Iterable[Term]) -> frozenset[str]:
    """What the student must show. A loss that does not say is given the model's whole outputs."""
    return frozenset[str]().union(*(term.loss.needs or {"outputs"} for term in terms))


def teacher_needs_of(terms: Iterable[Term]) -> frozenset[str]:
    return frozenset[str]().union(*(t.loss.teacher_needs or {"outputs"} for t in terms if t.loss.uses_teacher))


class StageLosses:
    """Installed before the stage's model is wrapped; ``remove()`` leaves the model as it was."""

    def __init__(self, terms: tuple[Term, ...], model: nn.Module, teacher: Any, *, defer_head: bool) -> None:
        self.terms, self.model, self.teacher = terms, model, teacher
        self.removed = False
        needs = needs_of(terms)
        taught = any(term.loss.uses_teacher for term in terms)  # measured in evaluation, from outputs that are kept
        self.capture = Capture(model, needs, defer_head=defer_head) if taught or not needs <= WHOLE else None
        self.now = terms
        steady = [term for term in terms if len(terms) == 1 or _steady(term)]
        at_times = any(term.loss.modules is not None for term in terms if term not in steady)
        self.partial = at_times or not needs_of(steady) & (WHOLE | {"final"})
        """At times some parameters take no part in the loss, such as the head where features alone are compared."""
        if self.capture is not None:
            self.capture.inside = self._inside
        own = {str(i): term.loss.modules for i, term in enumerate(terms) if term.loss.modules is not None}
        self.modules = nn.ModuleDict(own).to(_device(model)) if own else None
        if self.modules is not None:
            assert self.capture is not None
            self._attach()

    def teach(self, batch: Mapping[str, Any], t: float) -> Signals | None:
        """The teacher's signals; None while no term that reads them has weight."""
        if self.teacher is None or not any(term.loss.uses_teacher for term in weighted(self.terms, t)):
            return None
        return self.teacher(batch)

    @contextmanager
    def watching(
        self, t: float | None = None, *, whole: bool = False, outputs: bool = False, terms: Iterable[Term] | None = None
    ) -> Iterator[dict[str, Any]]:
        """One forward of the student, in which is kept what the losses need that have weight at ``t`` (all, without), or ``terms``.

        ``whole``, ``outputs``: its outputs are kept, too (see ``Capture.collecting``).
        """
        terms = tuple(terms) if terms is not None else None
        self.now = terms or (self.terms if t is None else weighted(self.terms, t))
        if self.capture is None:
            yield {}
            return
        with self.capture.collecting(whole=whole, outputs=outputs, now=needs_of(self.now)) as captured:
            yield captured

    @property
    def evaluates(self) -> bool:
        """Whether the terms can be measured on other data than the stage trains on: a cache has only that."""
        return self.capture is not None and not self.removed and getattr(self.teacher, "evaluates", False)

    def student(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Outputs of the wrapped model for a batch whose labels no term takes from the model."""
        return model(**model_inputs(self.model, batch))

    def prepare(self, batch: Mapping[str, Any], t: float, needs: frozenset[str] | None = None) -> None:
        """Before the stage's first forward whose logits may be left to the losses: find out whether they may."""
        if self.capture is not None and self.capture.unsure:
            self.capture.now = needs_of(weighted(self.terms, t)) if needs is None else needs
            self.capture.confirm_head(lambda: self.model(**model_inputs(self.model, batch)))

    def _inside(self, store: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        made: dict[str, Any] = {}
        used: list[Any] = []
        for term in self.now:
            own = term.loss.inside(store)
            used += [*own.values(), term.loss.used(store)]
            made.update(own)
        return made, used

    def remove(self) -> None:
        if self.removed:
            return
        self.removed = True
        if self.capture is not None:
            self.capture.remove()
        if self.teacher is not None and hasattr(self.teacher, "remove"):
            self.teacher.remove()
        self.model._modules.pop(NAME, None)

    # ---- weights of the losses' own: the stage trains and checkpoints them, no saved model holds them ---------------

    def _attach(self) -> None:
        """As part of the student they are optimized, clipped and synchronized as everything else."""
        self.model.add_module(NAME, self.modules)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """While the model is saved or loaded."""
        if self.modules is None:
            yield
            return
        self.model._modules.pop(NAME, None)
        try:
            yield
        finally:
            self._attach()

    def save(self, folder: Path) -> None:
        if self.modules is not None:
            state = {key: value.detach().cpu().contiguous() for key, value in self.modules.state_dict().items()}
            save_file(state, folder / _FILE)

    def load(self, folder: Path) -> None:
        if self.modules is not None:
            self.modules.load_state_dict(load_file(folder / _FILE))


def _steady(term: Term) -> bool:
    return all(isinstance(weight, Const) and weight.value for weight in term.weights)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
