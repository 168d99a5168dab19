"""Measure a domain as the stage that brought it does: with that stage's collator and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from hf_stages.data.stage_collator import for_source, prepare_collator
from hf_stages.planning.domains import Domain, domains_of, own_domains


def measured_as_its_stage_does(trainer: Any, name: str) -> AbstractContextManager[None]:
    """Evaluate one of a stage's sets. An earlier domain, which a gate watches, may have another kind of rows."""
    resolved, stage = trainer._staged_run_plan.resolved, trainer._stage.planned.name
    if name in own_domains(resolved[stage]):
        return nullcontext()
    domain = domains_of(resolved, stage).get(name)
    return measured_as(trainer, domain) if domain is not None else nullcontext()


@contextmanager
def measured_as(trainer: Any, domain: Domain) -> Iterator[None]:
    """Lend the trainer the domain's collator and metrics. Teacher terms pause: they may need other rows (DPO)."""
    measured, own = trainer._stage.measured, trainer._staged_own_settings
    held = {name: getattr(trainer, name) for name in ("data_collator", "compute_metrics")}
    terms, measured.teacher_terms = measured.teacher_terms, None
    try:
        for name in held:
            theirs = getattr(domain.stage, name) if domain.stage is not None else None
            setattr(trainer, name, theirs if theirs is not None else getattr(own, name))
        ready = prepare_collator(trainer.data_collator, trainer.processing_class, trainer.model)
        trainer.data_collator = for_source(ready, domain.name)
        yield
    finally:
        measured.teacher_terms = terms
        for name, value in held.items():
            setattr(trainer, name, value)
