"""A recipe whose stages know what they work with: names looked up, own values or the recipe's, curricula opened.

All that plans, checks, trains or evaluates stages reads it from here, so that all use the same datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_stages.core.lineage import lineage
from hf_stages.core.references import look_up, look_up_all
from hf_stages.core.stage import Recipe, Stage, own_or_shared, parents_of
from hf_stages.data.curricula.base import Curriculum
from hf_stages.data.curricula.mixture import Mixture
from hf_stages.data.curricula.replay import Replay
from hf_stages.data.drawing.blend import Blend, make_blend
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.planning.part_kinds import check_part_kinds
from hf_stages.planning.replay_sources import ExamplesRead, add_earlier_data, replay_gate
from hf_stages.schedules.of_stage import schedule_of

_SHARED = ("data_collator", "compute_metrics", "teacher")


@dataclass(frozen=True)
class ResolvedStage:
    """One stage with all that it takes from its recipe."""

    stage: Stage
    """The stage as it was declared."""
    own_dataset: Any = field(repr=False)
    """What the stage trains on by itself: a dataset, or a ``Blend`` of a curriculum."""
    dataset: Any = field(repr=False)
    """The same with what a gate may replay beside it, as if the earlier stages had drawn equally much."""
    eval_dataset: Any = field(repr=False)
    """A dataset, several by name, or None."""
    data_collator: Any
    compute_metrics: Any
    teacher: Any
    loss: Any
    """``TaskLoss()`` where none is declared."""
    schedule: Any
    """``Fresh()`` where none is declared."""
    lineage: tuple[Stage, ...] = field(repr=False)
    """The stages that this one stands on, from the first, and itself at the end."""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def sources(self) -> tuple[Any, ...]:
        """Return the datasets that are drawn from: one, or those of a curriculum."""
        return tuple(leaf.dataset for leaf in self.dataset.leaves) if self.mixes else (self.dataset,)

    @property
    def mixes(self) -> bool:
        """Tell whether the stage draws from a curriculum."""
        return isinstance(self.dataset, Blend)


@dataclass(frozen=True)
class ResolvedRecipe:
    """All stages of a recipe, resolved, in the recipe's order."""

    recipe: Recipe
    stages: tuple[ResolvedStage, ...]
    sources: Mapping[str, Any] = field(repr=False)
    """What names stand for: the recipe's sources, and datasets that ``train_dataset`` holds by name."""
    eval_dataset: Any = field(repr=False)
    """The recipe's own, for stages that have none."""

    def __getitem__(self, name: str) -> ResolvedStage:
        return next(stage for stage in self.stages if stage.name == name)

    def __iter__(self) -> Iterator[ResolvedStage]:
        return iter(self.stages)

    def replayable(self, name: str, read: ExamplesRead) -> Any:
        """Return a stage's dataset with what its gate may replay, weighted by what the earlier stages ``read``."""
        stage = self[name]
        return _with_earlier(self.recipe, stage.stage, self.sources, self.stages, stage.own_dataset, read)

    def with_recipe(self, recipe: Recipe) -> ResolvedRecipe:
        """Return the same stages and datasets with another recipe's parts, such as teachers that are loaded now."""
        stages = [replace(stage, **_parts(recipe, recipe[stage.name])) for stage in self.stages]
        return replace(self, recipe=recipe, stages=tuple(stages))


def resolve(recipe: Recipe) -> ResolvedRecipe:
    """Find what every stage of a recipe works with. Datasets are loaded; unknown names and missing data are errors.

    >>> recipe = Recipe([Stage("a", "1 steps"), Stage("b", "1 steps", train_dataset="code")],
    ...                 train_dataset=[1, 2], sources={"code": [3]})
    >>> [(stage.name, stage.dataset) for stage in resolve(recipe)]
    [('a', [1, 2]), ('b', [3])]
    """
    shared = recipe.train_dataset if isinstance(recipe.train_dataset, Mapping) else {}
    sources = {**recipe.sources, **shared}
    stages: list[ResolvedStage] = []
    for stage in recipe.stages:
        check_part_kinds(stage)
        where = f"stage {stage.name!r}: "
        own = _opened(_train_dataset(recipe, stage, sources), sources, f"{where}train_dataset")
        replays = replay_gate(stage) is not None
        resolved = ResolvedStage(
            own_dataset=own,
            dataset=_with_earlier(recipe, stage, sources, stages, own, None) if replays else own,
            eval_dataset=look_up_all(own_or_shared(stage, "eval_dataset", recipe), sources, f"{where}eval_dataset"),
            **_parts(recipe, stage),
        )
        stages.append(resolved)
    evaluated = look_up_all(recipe.eval_dataset, sources, "eval_dataset")
    return ResolvedRecipe(recipe, tuple(stages), sources, evaluated)


def _parts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Return what a stage works with beside its data."""
    parents = parents_of(recipe.stages)
    return {
        "stage": stage,
        **{key: own_or_shared(stage, key, recipe) for key in _SHARED},
        "loss": stage.loss if stage.loss is not None else TaskLoss(),
        "schedule": schedule_of(stage),
        "lineage": tuple(recipe[name] for name in lineage(stage.name, parents.get)),
    }


def _train_dataset(recipe: Recipe, stage: Stage, sources: Mapping[str, Any]) -> Any:
    """Return the stage's training data as declared: a dataset or a curriculum."""
    where = f"stage {stage.name!r}: train_dataset"
    dataset = look_up(own_or_shared(stage, "train_dataset", recipe), sources, where)
    if isinstance(dataset, Replay) and dataset.into is None and not isinstance(recipe.train_dataset, Mapping | Replay):
        dataset = replace(dataset, into=recipe.train_dataset)
    if type(dataset) is dict and stage.train_dataset is not None:
        dataset = Mixture(tuple(dataset), dataset)
    if dataset is None:
        raise ValueError(f"{where}: expected a dataset, got none here and none in the trainer")
    if isinstance(dataset, Mapping) and not isinstance(dataset, Curriculum):
        raise ValueError(
            f"{where}: expected one dataset, got named ones ({', '.join(dataset)}); "
            f"name the one to use: train_dataset={next(iter(dataset), 'name')!r}, or mix them: Mixture({list(dataset)})"
        )
    return dataset


def _opened(dataset: Any, sources: Mapping[str, Any], where: str) -> Any:
    """Open a curriculum: a blend of it has the sources themselves."""
    if not isinstance(dataset, Curriculum):
        return dataset
    return make_blend(dataset, lambda name, where: look_up(name, sources, where), where)


def _with_earlier(
    recipe: Recipe,
    stage: Stage,
    sources: Mapping[str, Any],
    resolved: Iterable[ResolvedStage],
    own: Any,
    read: ExamplesRead | None,
) -> Any:
    """Return a stage's data with what its gate may replay: the data of the stages that it stands on."""
    parents = parents_of(recipe.stages)
    datasets = {one.name: one.own_dataset for one in resolved}
    before = {name: datasets[name] for name in lineage(stage.name, parents.get)[:-1]}
    declared = own_or_shared(stage, "train_dataset", recipe)
    name = declared if isinstance(declared, str) else None
    found = add_earlier_data(stage, own, name=name, before=before, known=sources, read=read)
    return _opened(found, sources, f"stage {stage.name!r}: train_dataset")
