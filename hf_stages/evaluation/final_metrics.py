"""What a stage's folder says of its model: the stage's own evaluation, and every domain seen before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.ranks import from_all_ranks
from hf_stages.core.stage import Stage
from hf_stages.evaluation.last_evaluation import LastEvaluation
from hf_stages.evaluation.per_domain import measured_as
from hf_stages.evaluation.stage_metrics import StageMetrics
from hf_stages.planning.domains import domains_of, own_domains, same_task
from hf_stages.planning.resolved import ResolvedRecipe


def final_metrics(trainer: Any, measured: StageMetrics) -> dict[str, float]:
    """Give the metrics of the trainer's model on the stage's own sets, and the stage's training loss."""
    logs = measured.logs(trainer.state)
    metrics: dict[str, Any] = {}
    if trainer.eval_dataset is not None:
        metrics.update(_of_these_weights(trainer, measured.last))
    last = next((log["train_loss"] for log in reversed(logs) if "train_loss" in log), None)
    return {**_numbers(metrics), **({"train_loss": last} if last is not None else {})}


def _of_these_weights(trainer: Any, last: LastEvaluation) -> dict[str, float]:
    """Give the stage's last evaluation if it was of the weights at hand, else a new one.

    Where a callback changes the weights behind the new one as well, there is one more that callbacks do not hear of.
    """
    if not all(from_all_ranks(last.is_current(), trainer.args)):
        with last.measuring():
            last.store(_evaluated(trainer))
        if last.checksums and not all(from_all_ranks(last.is_current(), trainer.args)):
            with last.measuring(), trainer.callback_handler.measuring():
                last.store(_evaluated(trainer))
    return last.metrics


def metrics_of_other_domains(trainer: Any, stage: Stage, resolved: ResolvedRecipe) -> dict[str, float]:
    """Measure domains that this stage does not evaluate itself, as the stages that brought them do."""
    found: dict[str, Any] = {}
    if isinstance(stage.eval_dataset, Mapping) and not stage.eval_dataset:
        return found  # said in so many words: nothing that the run evaluates fits this stage
    own = {*own_domains(resolved[stage.name]), *_watched(trainer)}
    for domain in domains_of(resolved, stage.name).values():
        if domain.name in own or domain.dataset is None or not same_task(resolved, stage.name, domain):
            continue
        with measured_as(trainer, domain), trainer.callback_handler.measuring():
            data = trainer.eval_data(domain.dataset, domain.stage or stage)
            found.update(_evaluated(trainer, {domain.name: data}))
    return _numbers(found)


def _watched(trainer: Any) -> Mapping[str, Any]:
    """What the stage evaluates by name, which includes earlier domains that a gate watches."""
    return trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}


def _evaluated(trainer: Any, sets: Any = None) -> dict[str, float]:
    """Evaluate as in training: else bf16_full_eval would cast the model, and the folder would hold the cast."""
    trainer.is_in_train = True
    try:
        return trainer.evaluate(sets)
    finally:
        trainer.is_in_train = False


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}
