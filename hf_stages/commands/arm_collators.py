"""Collators of arms in which rows of several stages meet: each row and domain is collated as in its own stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_stages.core.stage import Stage
from hf_stages.data.collators.by_source import BySource
from hf_stages.planning.domains import domains_of, trained_on
from hf_stages.planning.plan import PlannedStage
from hf_stages.planning.resolved import ResolvedRecipe

SourcesOf = Callable[[PlannedStage], Mapping[str, str]]
"""Maps the names in a planned stage's rows to sources."""


@dataclass(frozen=True)
class RowCollators:
    """The collators of stages whose collators differ."""

    common: Any
    """The recipe's own."""
    of_source: Mapping[str, Any]
    of_domain: Mapping[str, Any]
    problem: str = ""
    """Why rows of these stages cannot stand in one batch; empty where they can."""

    def applied_to(self, planned: PlannedStage, drawn: SourcesOf) -> Stage:
        """Return the stage with a collator that goes by source."""
        stage = planned.stage
        by_row = {name: self.of_source[source] for name, source in drawn(planned).items()}
        for name, collator in by_row.items():
            if name in self.of_domain and self.of_domain[name] != collator:
                raise ValueError(_two_collators(name, f"as a source of stage {planned.name!r}", "as an evaluation set"))
        collators = {**self.of_domain, **by_row}
        own = stage.data_collator if stage.data_collator is not None else self.common
        return replace(stage, data_collator=BySource(collators, own))


def collators_by_source(
    resolved: ResolvedRecipe, stages: Sequence[PlannedStage], sources_of: SourcesOf
) -> RowCollators | None:
    """Collect the stages' collators by source and domain; None where all stages have the same."""
    own = {planned.name: resolved[planned.name].data_collator for planned in stages}
    shared = resolved.recipe.data_collator
    if all(collator == own[stages[0].name] for collator in own.values()):
        return None
    problem = ""
    of_source: dict[str, Any] = {}
    brought: dict[str, str] = {}
    for planned in stages:
        for source in sources_of(planned).values():
            if source in of_source and of_source[source] != own[planned.name]:
                problem = problem or _two_collators(
                    source, f"in stage {brought[source]!r}", f"in stage {planned.name!r}"
                )
            of_source.setdefault(source, own[planned.name])
            brought.setdefault(source, planned.name)
    of_domain: dict[str, Any] = {}
    for domain in domains_of(resolved, stages[-1].name).values():
        home = domain.stage.name if domain.stage is not None else _home_stage(resolved, stages, domain.name)
        if home is None and shared is None:
            problem = problem or (
                f"the evaluation set {domain.name!r} is named as no stage and no source, so there is no telling whose "
                "collator it takes"
            )
        of_domain[domain.name] = own[home] if home is not None else shared
        if domain.name in of_source and of_source[domain.name] != of_domain[domain.name]:
            problem = problem or _two_collators(domain.name, "as a source", "as an evaluation set")
    try:
        BySource({**of_domain, **of_source})
    except ValueError as error:
        problem = problem or str(error)
    return RowCollators(shared, of_source, of_domain, problem)


def _home_stage(resolved: ResolvedRecipe, stages: Sequence[PlannedStage], domain: str) -> str | None:
    """Return the first stage that trains on what the domain measures."""
    return next((planned.name for planned in stages if domain in trained_on(resolved, planned.name)), None)


def _two_collators(name: str, one: str, other: str) -> str:
    return f"{name!r} has one collator {one} and another {other}; give it the same"
