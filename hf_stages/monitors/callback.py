"""Monitors in a plain Trainer: a callback that writes their numbers to its log, its history and its trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_stages.core.calling_trainer import calling_trainer, check_evaluation_sets
from hf_stages.monitors.at_work import Monitoring, logs_at
from hf_stages.monitors.base import WatchedRun
from hf_stages.monitors.probe_batch import probe_batch


class MonitorCallback(TrainerCallback, ExportableState):
    """Lets monitors watch a plain ``transformers.Trainer``, or any subclass of it that trains without stages::

        from hf_stages.monitors import MonitorCallback, RunHealth

        trainer = Trainer(model, args, train_dataset=rows, callbacks=[MonitorCallback([RunHealth()])])

    The numbers go where Trainer's loss goes: the printed log, ``trainer.state.log_history``, trackers. What was
    gathered since the last log is written with each checkpoint (of several ranks, that of rank 0), so that a resumed
    run's log is that of an uncut one.

    Args:
        monitors: The monitors.

    >>> MonitorCallback([]).state()
    {'args': {}, 'attributes': {'remembered': {}}}
    """

    def __init__(self, monitors: Sequence[Any] = ()) -> None:
        self.monitors = tuple(monitors) if isinstance(monitors, list | tuple) else (monitors,)
        self.remembered: Mapping[str, Any] | None = None
        """What Trainer put here where it makes callbacks anew from a checkpoint."""
        self._working = Monitoring()
        self._trainer: Any = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in the form that Trainer expects."""
        return {"args": {}, "attributes": {"remembered": self._working.state_dict()}}

    # ---- Trainer's events --------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        trainer = calling_trainer(self)
        if getattr(trainer, "recipe", None) is not None:
            raise ValueError("MonitorCallback: this trainer runs stages; give monitors to them: Stage(monitors=[...])")
        check_evaluation_sets(trainer)
        if self.remembered is not None:
            raise ValueError(
                "MonitorCallback: restore_callback_states_from_checkpoint=True makes callbacks anew, without their "
                "monitors; leave it False: this callback goes on with its part of a checkpoint by itself"
            )
        run = WatchedRun(
            trainer.model,
            args,
            where="MonitorCallback",
            collated=partial(_collated, trainer),
            autocast=trainer.accelerator.autocast,
            scaler=trainer.accelerator.scaler,
            sharded=trainer.is_fsdp_enabled,
        )
        self._working = Monitoring(self.monitors, run, state.global_step)
        if state.global_step:
            self._go_on(state.stateful_callbacks)
        self._watch(trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._working.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._working.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._working.end_update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()

    # ---- what no event tells -----------------------------------------------------------------------------------------

    def _watch(self, trainer: Any) -> None:
        """Wrap those of the trainer's methods between which its callbacks hear nothing."""
        self._trainer, working = trainer, self._working

        def get_batch_samples(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with working.reading():
                batches = own(*args, **kwargs)
            step = trainer.state.global_step + 1
            working.begin_update(step, logged=logs_at(trainer.args, step))
            return batches

        def training_step(own: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = own(model, inputs, *args, **kwargs)
            working.micro_batch(loss, inputs)
            if trainer.accelerator.sync_gradients:
                working.end_gradients()
            return loss

        def measured_norm(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            norm = own(*args, **kwargs)
            working.gradient_norm(norm)
            return norm

        def log(own: Callable[..., Any], logs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if "loss" in logs:
                logs.update(working.log(_view(trainer)))
            return own(logs, *args, **kwargs)

        for name, wrapped in (
            ("get_batch_samples", get_batch_samples),
            ("training_step", training_step),
            ("_get_grad_norm", measured_norm),
            ("log", log),
        ):
            setattr(trainer, name, partial(wrapped, getattr(trainer, name)))

    def _stop(self) -> None:
        """Give the trainer its own methods back."""
        if self._trainer is not None:
            for name in ("get_batch_samples", "training_step", "_get_grad_norm", "log"):
                wrapped = vars(self._trainer).pop(name, None)
                own = wrapped.args[0] if isinstance(wrapped, partial) else None
                if own is not None and getattr(own, "__func__", None) is not getattr(type(self._trainer), name):
                    setattr(self._trainer, name, own)  # a user's own, set on the object
        self._trainer, self._working = None, Monitoring()

    def _go_on(self, states: Mapping[str, Any]) -> None:
        """Go on with what the checkpoint that training resumes from holds of this callback."""
        held = states.get(type(self).__name__)
        held = held[0] if isinstance(held, list) and held else held
        if isinstance(held, Mapping):
            self._working.load_state_dict(held["attributes"]["remembered"])


def _view(trainer: Any) -> dict[str, Any]:
    state = trainer.state
    return {
        "model": trainer.model,
        "step": state.global_step,
        "t": state.global_step / max(state.max_steps, 1),
        "tokens": state.num_input_tokens_seen,
        "teacher": None,
        "loss_terms": {},
    }


def _collated(trainer: Any, dataset: Any, count: int) -> Mapping[str, Any]:
    """Make a batch of the first rows of a dataset; None is what is evaluated, else what is trained on."""
    if dataset is None:
        sets = trainer.eval_dataset
        dataset = next(iter(sets.values()), None) if isinstance(sets, dict) else sets
        dataset = trainer.train_dataset if dataset is None else dataset
    return probe_batch(trainer, trainer.data_collator, dataset, count)
