"""A stage's model and losses built again from what an incident recorded, with the best weights that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_stages.core.curves import Const
from hf_stages.core.parts import part_from_dict
from hf_stages.core.sealed_folders import STAGE_FILE, STATE_FILE, checkpoints, find_damage, read_json
from hf_stages.losses.objective.stage_losses import StageLosses
from hf_stages.losses.objective.terms import Term, teacher_needs_of, terms_of
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.models.reduction import Reduction
from hf_stages.models.stage_models import load_stage
from hf_stages.models.structure import Blueprint, load_weights, replay
from hf_stages.reports.incidents import WEIGHTS, Incident, incident_file
from hf_stages.teachers.declared import Teacher
from hf_stages.teachers.live import BASE
from hf_stages.teachers.stage_teachers import start_teacher, teacher_structure

_INITIAL = "00-initial"


@dataclass(frozen=True)
class RebuiltStage:
    """A model and its losses, ready to run a row."""

    model: Any
    losses: StageLosses
    weights: str
    """Which weights they are, in words."""
    notes: tuple[str, ...]
    scales: Mapping[str, float]
    """What the update multiplied balanced terms by, by name."""

    @classmethod
    def make(cls, out: Path, incident: Incident, *, trust_remote_code: bool = False) -> RebuiltStage:
        """Build the stage of an incident. An error says what is missing."""
        about, where = incident.rebuild, str(incident_file(out, incident.step))
        try:
            blueprint = Blueprint.from_dict(about["base"], trust_remote_code=trust_remote_code)
            transforms = [
                part_from_dict(one, "transforms", trust_remote_code=trust_remote_code) for one in about["transforms"]
            ]
            model = replay(blueprint.build(), transforms)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{where}: its model cannot be built again: {error}") from error
        notes = [f"measured {'before' if incident.before else 'after'} the update, in evaluation mode: no dropout"]
        terms, teacher = _terms(out, about, model, notes, trust_remote_code)
        exact = incident_file(out, incident.step).with_suffix(WEIGHTS)
        told = None if exact.is_file() else _load_near(out, incident, model)
        losses = StageLosses(terms, model, teacher, defer_head=False)
        if told is None:
            _load_exactly(model, exact)
            told = "those that the rows were measured with"
        own = transforms[len(transforms) - about["own_transforms"] :]
        for transform in own:
            transform.at(model, incident.t)
        return cls(model, losses, told, tuple(notes), about.get("scales", {}))

    def items_of_task(self, columns: Mapping[str, Any]) -> Any:
        """Count the items of the model's own loss."""
        return next(term.loss.items(columns) for term in self.losses.terms if "loss" in term.loss.needs)


def _terms(
    out: Path, about: Mapping[str, Any], model: Any, notes: list[str], trusted: bool
) -> tuple[tuple[Term, ...], Any]:
    """Read the losses and their teacher. What cannot be read again is left out, and said."""
    loss: Any = TaskLoss()
    if (written := about.get("loss")) is not None:
        try:
            loss = _read_loss(written, trusted)
        except ValueError as error:
            notes.append(f"by the model's own loss, because the stage's cannot be read again: {error}")
    taught = any(term.loss.uses_teacher for term in terms_of(loss))
    source = _read_teacher(out, about.get("teacher"), model, trusted) if taught else None
    if taught and source is None:
        notes.append("without the terms that compare with a teacher: it was given as an object, and is not here")
        kept = [term for term in terms_of(loss) if not term.loss.uses_teacher]
        if not kept:
            notes.append("by the model's own loss, because every term compares with the teacher")
            kept = list(terms_of(TaskLoss()))
        adapted = [Term(t.name, t.weights or (Const(1.0),), t.loss.for_models(model, None), t.balance) for t in kept]
        return _with_reduction(adapted, about), None
    terms = terms_of(loss, model, teacher_structure(source, model) if source is not None else None)
    if isinstance(source, Teacher):
        source = source.load(model, device="cpu", trust_remote_code=trusted)
    device = torch.device("cpu")
    return _with_reduction(terms, about), start_teacher(source, model, teacher_needs_of(terms), device)


def _read_loss(written: Any, trusted: bool) -> Any:
    if isinstance(written, Mapping) and "use" not in written:  # by source
        return {name: part_from_dict(one, "loss", trust_remote_code=trusted) for name, one in written.items()}
    return part_from_dict(written, "loss", trust_remote_code=trusted)


def _read_teacher(out: Path, written: Any, model: Any, trusted: bool) -> Any:
    if isinstance(written, Mapping) and "folder" in written and "use" not in written:
        folder = out / written["folder"]
        return load_stage(folder, trust_remote_code=trusted)[0] if (folder / STAGE_FILE).is_file() else None
    if written is None or written == BASE:
        return written
    try:
        return part_from_dict(written, "teacher", trust_remote_code=trusted)
    except ValueError:
        return None


def _with_reduction(terms: Sequence[Term], about: Mapping[str, Any]) -> tuple[Term, ...]:
    """Tell the task's loss what the model's loss is a mean over, as the stage found out."""
    found = about.get("reduction")
    for term in terms:
        if term.loss.task is not None and term.loss.task.finds_reduction:
            term.loss.task.set_reduction(None if found is None else Reduction.from_dict(found))
    return tuple(terms)


# ---- weights ---------------------------------------------------------------------------------------------------------


def _load_exactly(model: Any, path: Path) -> None:
    result = model.load_state_dict(load_file(path), strict=False)
    if result.missing_keys or result.unexpected_keys:
        wrong = [*result.missing_keys, *result.unexpected_keys]
        raise ValueError(f"{path}: its weights are not those of the model that was built again, such as {wrong[0]}")


def _load_near(out: Path, incident: Incident, model: Any) -> str:
    """Load the newest weights from before the update. Returns which, in words."""
    about = incident.rebuild
    last = incident.step - 1 if incident.before else incident.step
    for step, folder in checkpoints(out):
        if step > last or step < about["first_step"] or find_damage(folder) is not None:
            continue
        if read_json(folder / STATE_FILE, "a stage state")["stage"] == incident.stage:
            load_weights(model, folder)
            return f"those of {folder.name}, {incident.step - step} updates before the update was done"
    if about["own_transforms"] == 0:
        for name in (about["parent"], None if about["parent"] else _INITIAL):
            folder = out / str(name)
            if name is not None and folder.is_dir() and find_damage(folder) is None:
                load_weights(model, folder)
                return f"those that the stage began with ({folder.name}), {incident.step - about['first_step']} updates"
    raise ValueError(
        f"{out}: there are no weights to replay step {incident.step} with: they were too large to be kept beside the "
        "incident, and there is no checkpoint of the stage from before it. Save checkpoints (save_strategy) to replay "
        "updates of a large model"
    )
