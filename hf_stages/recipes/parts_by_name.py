"""Reads parts that Python code gives by name: ``Stage(loss="LogitKL")``, ``StagedTrainer(teacher="path")``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hf_stages.core.parts import read_collator, read_loss, read_part
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.references import teaching_stage
from hf_stages.core.registry import KIND_OF_KEY, Where
from hf_stages.core.stage import Recipe
from hf_stages.data.collators.collator import Collator
from hf_stages.losses.base import Sum
from hf_stages.models.model_source import ModelSource
from hf_stages.recipes.files import read_metrics
from hf_stages.teachers.declared import Teacher
from hf_stages.teachers.live import BASE

_LISTS = ("transforms", "monitors", "gates", "exporters")


def with_parts(recipe: Recipe) -> Recipe:
    """Return the recipe with parts in place of their names. What is a part already stays the same."""
    stages = []
    for stage in recipe.stages:
        with place_errors(f"stage {stage.name!r}"):
            keys = (*_LISTS, "loss", "schedule", "data_collator", "compute_metrics")
            stages.append(
                replace(stage, **{key: _read_if_named(key, getattr(stage, key), Where((key,))) for key in keys})
            )
    own = {
        key: _read_if_named(key, getattr(recipe, key), Where((key,))) for key in ("data_collator", "compute_metrics")
    }
    notify = _read_if_named("notify", recipe.notify, Where(("notify",)))
    for one in notify:
        if not callable(one):
            raise ValueError(f"notify: expected a function of an alert, or Webhook(...); got {type(one).__name__}")
    return replace(recipe, stages=stages, notify=notify, **own)


def with_trainer_parts(recipe: Recipe, tokenizer: Any, model: Any) -> Recipe:
    """Return the recipe with what only a trainer can add.

    Collators of transformers get their tokenizer. A path of a teacher becomes a ``Teacher`` that a stage loads when it
    begins; equal paths become the same one.
    """
    known: dict[str, Any] = {}
    names = [stage.name for stage in recipe.stages]

    def with_parts_in(thing: Any, where: str) -> Any:
        if isinstance(thing.teacher, str) and thing.teacher in names and not os.path.exists(thing.teacher):
            raise ValueError(f"{where}teacher: {thing.teacher!r} is a stage; did you mean 'stage:{thing.teacher}'?")
        own = {"teacher": _teacher_by_path(thing.teacher, known)}
        if isinstance(thing.data_collator, Collator):
            with place_errors(where.removesuffix(": "), TypeError, ValueError):
                own["data_collator"] = thing.data_collator.build(getattr(tokenizer, "tokenizer", tokenizer), model)
        return replace(thing, **own)

    stages = [with_parts_in(stage, f"stage {stage.name!r}: ") for stage in recipe.stages]
    return replace(with_parts_in(recipe, ""), stages=stages)


def _read_if_named(key: str, value: Any, where: Where) -> Any:
    if key == "loss":
        return _read_loss(value, where)
    if key in (*_LISTS, "notify"):
        read: Callable[..., Any] = lambda part, at: read_part(part, [KIND_OF_KEY[key]], at)  # noqa: E731
        return tuple(read(part, where / i) if _is_named(part) else part for i, part in enumerate(value))
    if key == "compute_metrics":
        return read_metrics(value, where) if _is_named(value) or isinstance(value, list | tuple) else value
    if not _is_named(value):
        return value
    return read_part(value, ["schedules"], where) if key == "schedule" else read_collator(value, where)


def _read_loss(value: Any, where: Where) -> Any:
    if isinstance(value, list | tuple) and value:
        terms = [_read_loss(term, where / i) for i, term in enumerate(value)]
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))
    if isinstance(value, Mapping) and not _is_named(value):
        return {source: _read_loss(loss, where / source) for source, loss in value.items()}
    return read_loss(value, where) if _is_named(value) else value


def _teacher_by_path(teacher: Any, known: dict[str, Any]) -> Any:
    if isinstance(teacher, ModelSource):
        if repr(teacher) not in known:
            known[repr(teacher)] = teacher.load()
        return known[repr(teacher)]
    if not isinstance(teacher, str) or teacher == BASE or teaching_stage(teacher) is not None:
        return teacher
    return known.setdefault(teacher, Teacher(teacher))


def _is_named(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and "use" in value)
