"""What evaluation says at a stage's start, after its transforms: ``start_loss``, ``start_code_loss``.

Where nothing changed since the parent's end, its numbers are taken over: the same weights on the same rows need no
second pass. A resumed run takes them from the parent's folder, so it has the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.stage import Stage, own_or_shared
from hf_stages.data.collators.base import nested_collators
from hf_stages.data.collators.by_source import BySource
from hf_stages.losses.objective.terms import terms_of
from hf_stages.planning.domains import by_domain, domains_of, own_domains, plain_name
from hf_stages.planning.plan import PlannedStage
from hf_stages.planning.resolved import ResolvedRecipe, ResolvedStage

START = "start"
_READS = (
    *("dataloader_drop_last", "label_names", "per_device_eval_batch_size", "prediction_loss_only"),
    "remove_unused_columns",
)
"""Arguments that a stage may set itself and that evaluation reads."""


def start_metrics(trainer: Any, planned: PlannedStage, before: Mapping[str, float]) -> dict[str, float]:
    """Measure, or take over from the parent's end, set by set. Both are logged; no step of a generator is used up.

    Args:
        trainer: Whose model and evaluation sets they are.
        planned: The stage that begins.
        before: Metrics that its parent ended with.
    """
    sets = trainer.eval_dataset
    if sets is None:
        return {}
    known = _unchanged(trainer, planned, before)
    with preserve_random_state(), trainer.callback_handler.measuring():
        if not known:
            return _numbers(trainer.evaluate(metric_key_prefix=START))
        found: dict[str, float] = {}
        for name in sets if isinstance(sets, Mapping) else [None]:
            prefix = START if name is None else f"{START}_{name}"
            if name in known:
                taken = {f"{prefix}_{key}": value for key, value in known[name].items()}
                trainer.log(dict(taken))
            else:
                taken = trainer.evaluate(name, metric_key_prefix=prefix)
            found.update(taken)
        return _numbers(found)


def as_evaluated(metrics: Mapping[str, float]) -> dict[str, float]:
    """Give start metrics the names of evaluations within the stage, to compare with them."""
    return {f"eval_{key.removeprefix(f'{START}_')}": value for key, value in metrics.items()}


def _unchanged(trainer: Any, planned: PlannedStage, before: Mapping[str, float]) -> dict[str | None, dict[str, float]]:
    """Find the parent's last metrics of each set (None: the set without a name) that would be measured the same now."""
    if planned.parent is None:
        return {}
    resolved = trainer._staged_run_plan.resolved
    parent, stage = resolved[planned.parent], resolved[planned.name]
    if not _same_model(stage.stage) or not _same_args(trainer, stage.stage, parent.stage):
        return {}
    names, plain = domains_of(resolved, parent.name), plain_name(parent)
    bare = {key.removeprefix("eval_"): value for key, value in before.items() if key.startswith("eval_")}
    ended = by_domain(bare, [name for name in names if name != plain], plain)
    if plain_name(stage) is not None:
        shown: dict[str | None, str] = {None: plain_name(stage) or ""}
    else:
        shown = {name: name for name in trainer.eval_dataset}
    return {
        key: ended[name]
        for key, name in shown.items()
        if name in ended and _same(_measure(trainer, resolved, parent, name), _measure(trainer, resolved, stage, name))
    }


def _same_model(stage: Stage) -> bool:
    """Tell whether the stage's transforms leave every value and every output as it was, as ``Freeze`` does."""
    return all(transform.keeps_function and not transform.structural for transform in stage.transforms)


def _same_args(trainer: Any, stage: Stage, parent: Stage) -> bool:
    whole = trainer._staged_own_settings.args

    def read(of: Stage) -> list[Any]:
        return [of.args.get(key, getattr(whole, key, None)) for key in _READS]

    return read(stage) == read(parent)


def _measure(trainer: Any, resolved: ResolvedRecipe, stage: ResolvedStage, name: str) -> tuple[Any, ...] | None:
    """List what the numbers of a set depend on besides the weights, in a stage; None where that is unknown."""
    by: Stage | None
    own, domain = own_domains(stage), domains_of(resolved, stage.name).get(name)
    if name in own:
        by, dataset = stage.stage, own[name]
    elif domain is not None:
        by, dataset = domain.stage, domain.dataset
    else:
        return None
    collator, metrics = (
        own_or_shared(by, key, resolved.recipe) if by is not None else getattr(resolved.recipe, key)
        for key in ("data_collator", "compute_metrics")
    )
    bound = None
    if name in own:
        terms = terms_of(stage.loss)
        if any(term.loss.uses_teacher for term in terms):
            return None  # evaluation adds them, and each stage's teacher is another's
        if any(isinstance(one, BySource) for one in nested_collators(collator)):
            drawn = stage.stage.train_dataset
            bound = drawn if isinstance(drawn, str) else None  # whose collator it is then
    return trainer.eval_data(dataset, by if by is not None else stage.stage), collator, metrics, bound


def _same(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    if one is None or other is None or one[0] is not other[0]:
        return False
    return all(a is b or bool(a == b) for a, b in zip(one[1:], other[1:], strict=True))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}
