"""Domains: the named evaluation sets of a run, which stage trains on each, and what was measured on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_stages.core.stage import Recipe, Stage, parents_of
from hf_stages.data.curricula.base import Curriculum
from hf_stages.planning.measure_data import named, train_dataset_of
from hf_stages.transforms.base import Transform

PLAIN = "eval"
"""The name of the run's evaluation set where it has none of its own."""
_TIMED = ("runtime", "per_second", "model_preparation_time")


@dataclass(frozen=True)
class Domain:
    """One evaluation set. ``stage`` is the one that brought it, whose collator and metrics it is measured with."""

    name: str
    dataset: Any
    stage: Stage | None = None


def domains_of(recipe: Recipe, last: str | None = None) -> dict[str, Domain]:
    """The domains known at the stage ``last``: the run's own and those of the stages up to it."""
    found = {name: Domain(name, data) for name, data in _named(recipe.eval_dataset, PLAIN, recipe).items()}
    for stage in recipe.stages:
        sets = _named(stage.eval_dataset, stage.name, recipe)
        found.update({name: Domain(name, data, stage) for name, data in sets.items()})
        if stage.name == last:
            break
    return found


def own_domains(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What Trainer itself evaluates in the stage, by domain."""
    own = stage.eval_dataset is not None
    return _named(stage.eval_dataset if own else recipe.eval_dataset, stage.name if own else PLAIN, recipe)


def evaluated(recipe: Recipe) -> Iterator[tuple[Stage, Any]]:
    """Every set that a stage evaluates, its own or the run's."""
    for stage in recipe.stages:
        for dataset in own_domains(recipe, stage).values():
            yield stage, dataset


def plain_name(recipe: Recipe, stage: Stage) -> str | None:
    """The domain of metrics without a name; None where the stage's evaluation sets have names."""
    own = stage.eval_dataset if stage.eval_dataset is not None else recipe.eval_dataset
    if own is None or isinstance(own, Mapping):
        return None
    return stage.name if stage.eval_dataset is not None else PLAIN


def _named(sets: Any, plain: str, recipe: Recipe) -> dict[str, Any]:
    if sets is None:
        return {}
    sets = sets if isinstance(sets, Mapping) else {plain: sets}
    return {str(name): named(data, recipe, f"eval_dataset[{name!r}]") for name, data in sets.items()}


def trained_on(recipe: Recipe, stage: Stage) -> list[str]:
    """Names that say what a stage trains on: its own, its source's, those of a mixture."""
    data = stage.train_dataset if stage.train_dataset is not None else recipe.train_dataset
    names = [stage.name]
    if isinstance(data, str):
        names.append(data)
        data = train_dataset_of(recipe, stage)
    if isinstance(data, Curriculum):
        weights = getattr(data, "weights", None)
        names += [*data.source_names(), *(weights if isinstance(weights, Mapping) else ())]
    elif isinstance(data, Mapping):
        names += [str(name) for name in data]
    return list(dict.fromkeys(names))


def earlier_domains(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Domains that the stages before this one, on its own branch, trained on, as far as names tell."""
    learned = set(itertools.chain.from_iterable(trained_on(recipe, before) for before in _chain(recipe, stage)[1:]))
    return tuple(name for name in domains_of(recipe, stage.name) if name in learned)


def same_task(recipe: Recipe, stage: Stage, domain: Domain) -> bool:
    """Whether the stage's model still does what the domain measures: a head for classes reads no tokens."""
    return _task(recipe, stage) == (_task(recipe, domain.stage) if domain.stage is not None else None)


def _task(recipe: Recipe, stage: Stage) -> Transform | None:
    """The head that a stage's model was given last; None is the initial model's."""
    for current in _chain(recipe, stage):
        for transform in reversed(current.transforms):
            if transform.sets_task:
                return transform
    return None


def _chain(recipe: Recipe, stage: Stage) -> list[Stage]:
    """The stage and those it stands on, latest first."""
    parents, chain = parents_of(recipe.stages), [stage]
    while (parent := parents[chain[-1].name]) is not None:
        chain.append(recipe[parent])
    return chain


def by_domain(metrics: Mapping[str, Any], names: Iterable[str], plain: str | None) -> dict[str, dict[str, float]]:
    """Sort ``code_loss`` and ``loss`` (``plain``) by domain; the longest name that fits has it, timings are left out.

    >>> by_domain({"code_loss": 2.0, "code_hard_loss": 3.0, "loss": 1.0}, ["code", "code_hard"], "eval")
    {'code': {'loss': 2.0}, 'code_hard': {'loss': 3.0}, 'eval': {'loss': 1.0}}
    """
    found: dict[str, dict[str, float]] = {}
    ordered = sorted(names, key=len, reverse=True)
    for key, value in metrics.items():
        if key.endswith(_TIMED) or not isinstance(value, int | float) or key in ("epoch", "stage", "step"):
            continue
        name = next((name for name in ordered if key.startswith(f"{name}_")), None)
        if name is not None:
            found.setdefault(name, {})[key.removeprefix(f"{name}_")] = value
        elif plain is not None:
            found.setdefault(plain, {})[key] = value
    return found
