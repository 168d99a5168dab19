"""The losses of one running stage: its terms, the hooks they need on the model, and the weights they bring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_stages.core.batch import Batch
from hf_stages.core.curves import Const
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage import Stage
from hf_stages.layers.recurrent import freeze_gate
from hf_stages.losses.objective.student_forwards import TaskForward
from hf_stages.losses.objective.terms import Term, needs_of, terms_of, terms_with_weight
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.models.capture import WHOLE, Capture, CaptureRequest
from hf_stages.models.model_inputs import model_inputs
from hf_stages.models.signals import Signals

NAME = "hf_stages_losses"
_FILE = "loss_weights.safetensors"


def adapted_terms(stage: Stage, student: Any, teacher: Any) -> tuple[Term, ...]:
    """Adapt the stage's terms to these models, which may be on the meta device. Refuse, by name, what cannot work."""
    loss = stage.loss if stage.loss is not None else TaskLoss()
    with place_errors(f"stage {stage.name!r}: loss"):
        return terms_of(loss, student, teacher)


def wants_teacher(stage: Stage) -> bool:
    """Tell whether a term of the stage's loss reads a teacher."""
    return stage.loss is not None and any(term.loss.uses_teacher for term in terms_of(stage.loss))


class StageLosses:
    """The terms of a stage together with their hooks, their teacher, and their own weights.

    It is made before the stage's model is wrapped or compiled. ``remove()`` leaves the model as it was.

    Args:
        terms: The terms, adapted to the models.
        model: The student, not wrapped.
        teacher: Gives signals of a batch (``LiveTeacher``, ``BaseTeacher``, a cache's reader), or None.
        defer_head: Whether the student's output head may be left to the losses, which apply it a chunk at a time.
    """

    objective: Objective | None = None
    """What the terms are summed in; None until the stage begins to train."""

    def __init__(self, terms: tuple[Term, ...], model: nn.Module, teacher: Any, *, defer_head: bool) -> None:
        self.terms, self.model, self.teacher = terms, model, teacher
        self.removed = False
        needs = needs_of(terms)
        taught = any(term.loss.uses_teacher for term in terms)  # measured in evaluation, from outputs that are kept
        self.capture = Capture(model, needs, defer_head=defer_head) if taught or not needs <= WHOLE else None
        self._requests: dict[Any, CaptureRequest] = {}
        steady = [term for term in terms if len(terms) == 1 or _steady(term)]
        at_times = any(t.loss.modules is not None or "cycles" in t.loss.needs for t in terms if t not in steady)
        self.partial = at_times or not needs_of(steady) & (WHOLE | {"final"})
        """Whether some parameters may take no part in the loss, such as the head where features alone are compared."""
        own = {str(i): term.loss.modules for i, term in enumerate(terms) if term.loss.modules is not None}
        self.modules = nn.ModuleDict(own).to(_device(model)) if own else None
        if self.modules is not None:
            assert self.capture is not None
            self._attach()
        self._frozen = [] if "cycles" in needs else freeze_gate(model)

    def signals(
        self, model: nn.Module, batch: Batch, t: float, *, task: TaskForward | None = None, autocast: Any = nullcontext
    ) -> tuple[Signals, Signals | None]:
        """Return the student's and the teacher's signals of a micro-batch: all that terms with weight at ``t`` read.

        A training step calls this once. It runs the teacher, finds out whether the head may be deferred, and runs the
        student.

        Args:
            model: The student, wrapped as it trains.
            batch: The micro-batch.
            t: The progress of the stage.
            task: The trainer's own forward, where a term takes the task's loss.
            autocast: Makes the context in which the teacher and forwards outside the trainer's own run.
        """
        terms = terms_with_weight(self.terms, t)
        with autocast():
            # Before the student's activations take their room.
            taught = self.teacher is not None and any(term.loss.uses_teacher for term in terms)
            teacher = self.teacher(batch.columns) if taught else None
            self._check_head(batch, terms)
        if task is None:
            return self._run(model, batch, terms), teacher
        others = tuple(term for term in terms if term.loss.needs != {"loss"})
        student = self._run_task(task, terms, others)
        if not task.gives_all(student, needs_of(others)):
            again = others or terms  # the loss of a batch without targets hangs on whole outputs
            with autocast():
                self._check_head(batch, again)
            student = replace(self._run(model, batch, again), loss=student.loss)
        return student, teacher

    def whole_signals(self, model: nn.Module, batch: Batch) -> Signals:
        """Run the student with its outputs left whole, as in evaluation, and return what all terms read."""
        with self.watching_evaluation() as captured:
            self._outputs(model, batch)
        return Signals(captured.pop("outputs"), captured=captured)

    def watching_evaluation(self) -> AbstractContextManager[dict[str, Any]]:
        """Watch a forward of an evaluation. Its outputs stay as they are, and are kept under ``outputs``."""
        return self._watching(self.terms, whole=True)

    @property
    def can_be_evaluated(self) -> bool:
        """Whether the terms can be measured on data that the stage does not train on; a cache has no other."""
        return self.capture is not None and not self.removed and getattr(self.teacher, "answers_any_batch", False)

    # ---- forwards of the student ------------------------------------------------------------------------------------

    def _run(self, model: nn.Module, batch: Batch, terms: tuple[Term, ...]) -> Signals:
        """Run the student without labels."""
        with self._watching(terms) as captured:
            outputs = self._outputs(model, batch)
        return Signals(outputs, None, captured)

    def _run_task(self, task: TaskForward, terms: tuple[Term, ...], others: tuple[Term, ...]) -> Signals:
        """Run the trainer's own forward.

        Outputs are asked for only where a term reads them and hooks do not see them anyway. A trainer with a fused head
        would run one more forward for them.
        """
        seen = task.is_overridden and self.capture is not None and "outputs" not in needs_of(others)
        wanted = task.outputs_asked or (task.outputs_read and not seen)
        with self._watching(terms, outputs=seen) as captured:
            loss, outputs = task.run(wanted)
        return Signals(outputs if wanted else captured.pop("outputs", None), loss, captured)

    def _outputs(self, model: nn.Module, batch: Batch) -> Any:
        return model(**model_inputs(self.model, batch.inputs))

    def _check_head(self, batch: Batch, terms: tuple[Term, ...]) -> None:
        """Find out, before the first forward that defers the head, whether it may be deferred."""
        if self.capture is not None:
            self.capture.check_head(lambda: self._outputs(self.model, batch), self._request(terms))

    def _watching(self, terms: tuple[Term, ...], **kept: bool) -> AbstractContextManager[dict[str, Any]]:
        return self.capture.collecting(self._request(terms, **kept)) if self.capture is not None else nullcontext({})

    def _request(self, terms: tuple[Term, ...], **kept: bool) -> CaptureRequest:
        """Return the same object each time, so that a compiled model need not look at its hooks anew."""
        key = (tuple(term.name for term in terms), *sorted(kept.items()))
        if key not in self._requests:
            self._requests[key] = CaptureRequest(needs_of(terms), **kept, project=partial(_project, terms))
        return self._requests[key]

    def remove(self) -> None:
        if self.removed:
            return
        self.removed = True
        if self.capture is not None:
            self.capture.remove()
        if self.teacher is not None and hasattr(self.teacher, "remove"):
            self.teacher.remove()
        self.model._modules.pop(NAME, None)
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    # ---- the losses' own weights: trained and checkpointed with the stage, in no saved model -------------------------

    def _attach(self) -> None:
        """Make the weights a part of the student: they are then optimized, clipped and synchronized with it."""
        self.model.add_module(NAME, self.modules)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Take the weights off while the model is saved or loaded."""
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


def _project(terms: Iterable[Term], captured: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the signals that the terms make of captured ones, and the tensors that their values depend on."""
    projected: dict[str, Any] = {}
    tensors_read: list[Any] = []
    for term in terms:
        own = term.loss.projected_signals(captured)
        tensors_read += [*own.values(), term.loss.tensors_read(captured)]
        projected.update(own)
    return projected, tensors_read


def _steady(term: Term) -> bool:
    return all(isinstance(weight, Const) and weight.value for weight in term.weights)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
