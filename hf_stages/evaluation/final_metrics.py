"""What a stage's folder says of its model: its own evaluation, the gates' last word, and every domain seen before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.ranks import from_all_ranks
from hf_stages.evaluation.last_evaluation import LastEvaluation
from hf_stages.evaluation.per_domain import measured_as
from hf_stages.planning.domains import domains_of, own_domains, same_task


def settled_metrics(runner: Any, run: Any) -> dict[str, float]:
    """The metrics of the weights that the folder will hold: a gate may go back to earlier ones first."""
    state = runner.trainer.state
    metrics = _own(runner, run)
    if run.steering.settle(run.history(state, {**metrics, "step": state.global_step})):
        metrics = _own(runner, run)
    return {**metrics, **_other_domains(runner, run)}


def _own(runner: Any, run: Any) -> dict[str, float]:
    trainer = runner.trainer
    logs = trainer.state.log_history[run.history_start :]
    metrics: dict[str, Any] = {}
    if trainer.eval_dataset is not None:
        metrics.update(_of_these_weights(trainer, run.last_evaluation))
    last = next((log["train_loss"] for log in reversed(logs) if "train_loss" in log), None)
    return {**_numbers(metrics), **({"train_loss": last} if last is not None else {})}


def _of_these_weights(trainer: Any, last: LastEvaluation) -> dict[str, float]:
    """The stage's last evaluation if it was of the weights at hand, else a new one; and where a callback changed them behind
    that as well, one more that callbacks do not hear of."""
    if not all(from_all_ranks(last.holds(), trainer.args)):
        with last.measuring():
            last.keep(_evaluated(trainer))
        if last.prints and not all(from_all_ranks(last.holds(), trainer.args)):
            with last.measuring(), trainer.callback_handler.measuring():
                last.keep(_evaluated(trainer))
    return last.metrics


def _other_domains(runner: Any, run: Any) -> dict[str, float]:
    """Domains that this stage does not evaluate itself, measured as the stages that brought them do."""
    trainer, stage = runner.trainer, run.planned.stage
    found: dict[str, Any] = {}
    if (
        isinstance(stage.eval_dataset, Mapping) and not stage.eval_dataset
    ):  # said in so many words: nothing that the run evaluates fits this stage
        return found
    resolved = runner.plan.resolved
    own = {*own_domains(resolved[stage.name]), *_watched(trainer)}
    for domain in domains_of(resolved, stage.name).values():
        if domain.name in own or domain.dataset is None or not same_task(resolved, stage.name, domain):
            continue
        with measured_as(trainer, domain), trainer.callback_handler.measuring():
            data = trainer.eval_data(domain.dataset, domain.stage or stage)
            found.update(_evaluated(trainer, {domain.name: data}))
    return _numbers(found)


def _watched(trainer: Any) -> Mapping[str, Any]:
    """What the stage evaluates by name: a gate's earlier domains, too."""
    return trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}


def _evaluated(trainer: Any, sets: Any = None) -> dict[str, float]:
    """Outside of training, bf16_full_eval would cast the model itself, and the folder would hold the cast."""
    trainer.is_in_train = True
    try:
        return trainer.evaluate(sets)
    finally:
        trainer.is_in_train = False


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}
