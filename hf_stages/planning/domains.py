"""Domains: the named evaluation sets of a run, and which stage trains on each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_stages.core.stage import Stage, own_or_shared
from hf_stages.data.curricula.base import Curriculum
from hf_stages.data.evaluation_sets import plain_set
from hf_stages.planning.resolved import ResolvedRecipe, ResolvedStage
from hf_stages.transforms.base import Transform

PLAIN = "eval"
"""The domain of the run's evaluation set where that has no name."""
_TIMED = ("runtime", "per_second", "model_preparation_time")


@dataclass(frozen=True)
class Domain:
    """One evaluation set."""

    name: str
    dataset: Any
    stage: Stage | None = None
    """The stage that brought it, whose collator and metrics it is measured with; None for the run's own."""


def domains_of(resolved: ResolvedRecipe, last: str | None = None) -> dict[str, Domain]:
    """Return the domains known at the stage ``last``: the run's own and those of the stages up to it."""
    found = {name: Domain(name, data) for name, data in _by_name(resolved.eval_dataset, PLAIN).items()}
    for stage in resolved:
        if stage.stage.eval_dataset is not None:
            sets = _by_name(stage.eval_dataset, stage.name)
            found.update({name: Domain(name, data, stage.stage) for name, data in sets.items()})
        if stage.name == last:
            break
    return found


def own_domains(stage: ResolvedStage) -> dict[str, Any]:
    """Return what Trainer itself evaluates in the stage, by domain."""
    return _by_name(stage.eval_dataset, _plain(stage))


def evaluation_sets(resolved: ResolvedRecipe) -> Iterator[tuple[ResolvedStage, Any]]:
    """Yield every set that a stage evaluates, its own or the run's, as rows."""
    for stage in resolved:
        for dataset in own_domains(stage).values():
            yield stage, plain_set(dataset)


def plain_name(stage: ResolvedStage) -> str | None:
    """Return the domain of metrics without a name; None where the stage's evaluation sets have names."""
    single = stage.eval_dataset is not None and not isinstance(stage.eval_dataset, Mapping)
    return _plain(stage) if single else None


def _plain(stage: ResolvedStage) -> str:
    """Name a set that has no name of its own: after its stage, or ``PLAIN`` where it is the run's."""
    return stage.name if stage.stage.eval_dataset is not None else PLAIN


def _by_name(sets: Any, plain: str) -> dict[str, Any]:
    if sets is None:
        return {}
    return {str(name): data for name, data in (sets if isinstance(sets, Mapping) else {plain: sets}).items()}


def trained_on(resolved: ResolvedRecipe, name: str) -> list[str]:
    """Return names that say what a stage trains on: its own, its source's, those of a mixture."""
    data = own_or_shared(resolved[name].stage, "train_dataset", resolved.recipe)
    names = [name]
    if isinstance(data, str):
        names.append(data)
    elif isinstance(data, Curriculum):
        weights = getattr(data, "weights", None)
        names += [*data.source_names(), *(weights if isinstance(weights, Mapping) else ())]
    elif isinstance(data, Mapping):
        names += [str(name) for name in data]
    return list(dict.fromkeys(names))


def earlier_domains(resolved: ResolvedRecipe, name: str) -> tuple[str, ...]:
    """Return the domains that the stages below this one, on its own branch, trained on, as far as names tell."""
    below = resolved[name].lineage[:-1]
    learned = set(itertools.chain.from_iterable(trained_on(resolved, stage.name) for stage in below))
    return tuple(domain for domain in domains_of(resolved, name) if domain in learned)


def same_task(resolved: ResolvedRecipe, name: str, domain: Domain) -> bool:
    """Tell whether the stage's model still does what the domain measures: a head for classes predicts no tokens."""
    theirs = _task(resolved[domain.stage.name]) if domain.stage is not None else None
    return _task(resolved[name]) == theirs


def _task(stage: ResolvedStage) -> Transform | None:
    """Return the transform that gave the stage's model its head last; None for the initial model's own head."""
    transforms = [transform for one in stage.lineage for transform in one.transforms]
    return next((transform for transform in reversed(transforms) if transform.sets_task), None)


def by_domain(metrics: Mapping[str, Any], names: Iterable[str], plain: str | None) -> dict[str, dict[str, float]]:
    """Sort metrics by domain: ``code_loss`` is of ``code``, ``loss`` of ``plain``. Timings are left out.

    Where several names fit (``code``, ``code_hard``), the longest has the metric.

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
