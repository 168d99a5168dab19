"""The sources of a staged run: each once, with the examples that a stage draws of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.references import look_up
from hf_stages.core.stage import Recipe, own_or_shared
from hf_stages.data.curricula.mixture import Mixture
from hf_stages.planning.measure_data import examples_read
from hf_stages.planning.plan import Plan, PlannedStage


class Sources:
    """The sources of the staged run by name, each once, and how many examples a planned stage draws of them."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        held = recipe.train_dataset if isinstance(recipe.train_dataset, Mapping) else {}
        self.recipe, self.known = recipe, {**recipe.sources, **held}
        self.datasets: dict[str, Any] = {}
        self.first: dict[str, str] = {}
        """The stage that brings a source."""
        for planned in plan.stages:
            for name in self.of(planned):
                self.first.setdefault(name, planned.name)

    def of(self, planned: PlannedStage) -> dict[str, float]:
        blend = planned.blend
        if blend is None:
            stage = planned.stage
            data = own_or_shared(stage, "train_dataset", self.recipe)
            dataset = look_up(data, self.known, f"stage {stage.name!r}: train_dataset")
            return {self._name(data if isinstance(data, str) else planned.name, dataset): _plain_examples(planned)}
        counts = examples_read(planned, blend)
        found: dict[str, float] = {}
        for leaf, count in zip(blend.leaves, counts, strict=True):
            if blend.replays and not count:
                continue  # a gate may replay it
            if hasattr(leaf.dataset, "tokens") and hasattr(leaf.dataset, "order"):
                raise ValueError(
                    f"stage {planned.name!r}: train_dataset: ByLength takes several rows of {leaf.name!r} at once, so "
                    "examples cannot be set equal; compare without it"
                )
            name = self._name(leaf.name, leaf.dataset)
            found[name] = found.get(name, 0.0) + count
        return found

    def names(self, planned: PlannedStage) -> dict[str, str]:
        """Map the names in a stage's rows to sources. Rows of a plain dataset have none; the stage's name counts."""
        if planned.blend is None:
            return {name: name for name in self.of(planned)}
        return {leaf.name: self._name(leaf.name, leaf.dataset) for leaf in planned.blend.leaves}

    def _name(self, name: str, dataset: Any) -> str:
        for known, other in self.datasets.items():
            if other is dataset:
                return known
        name = next((known for known, other in self.known.items() if other is dataset), name)
        base, number = name, 2
        while name in self.datasets:
            name, number = f"{base}-{number}", number + 1
        self.datasets[name] = dataset
        return name

    def mixture(self, weights: Mapping[str, Any]) -> Mixture:
        """Mix sources by name where the recipe has them under this name, so that the run's record stays readable."""
        own = {name: self.datasets[name] for name in weights if self.known.get(name) is not self.datasets[name]}
        return Mixture(dict(weights), sources=own or None)


def _plain_examples(planned: PlannedStage) -> float:
    """Count the examples of a plain dataset that a stage reads: the last batch of an epoch may be smaller."""
    size = planned.size
    if size.examples is None or not size.updates_per_epoch:
        return planned.steps * size.global_batch
    epochs, rest = divmod(planned.steps, size.updates_per_epoch)
    each = size.examples if not size.drop_last else (size.batches_per_epoch or 0) * size.batch * size.world
    return epochs * each + min(rest * size.global_batch, each)
