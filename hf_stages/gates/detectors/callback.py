"""Detectors in a plain Trainer: a callback that asks them at each log, warns, tells others, and may stop it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from hf_stages.core.calling_trainer import calling_trainer, check_evaluation_sets
from hf_stages.core.ledger import Entry, Ledger
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.ranks import from_main_rank
from hf_stages.gates.actions.end_stage import EndStage
from hf_stages.gates.actions.stop_run import StopRun
from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector
from hf_stages.gates.logged_metrics import check_logged
from hf_stages.gates.notify.base import Alert
from hf_stages.gates.notify.telling import Notifications

logger = logging.get_logger(__name__)


class DetectorCallback(TrainerCallback, ExportableState):
    """Lets detectors watch a plain ``transformers.Trainer``, or any subclass of it that trains without stages::

        from hf_stages.gates import DetectorCallback, Divergence, TokenCollapse
        from hf_stages.monitors import MonitorCallback, RunHealth

        health = [MonitorCallback([RunHealth()]), DetectorCallback([TokenCollapse(), Divergence()], notify=print)]
        trainer = Trainer(model, args, train_dataset=rows, callbacks=health)

    They read ``trainer.state.log_history``. What they find is a warning, and is told to ``notify``. An action may be
    ``StopRun()``, which ends the training; lower rates and ways back need stages. Its decisions are written with each
    checkpoint, so a resumed run repeats none. Where updates were NaN, Trainer logs a loss that is too low; with the
    monitor ``RawLoss`` detectors pass over it. A detector that reads what no monitor here logs is refused as training
    begins, and so are those that compare depths, which stages measure.

    Args:
        detectors: The detectors.
        notify: Whom to tell: a function of an ``Alert``, ``Webhook()``, or several.

    >>> DetectorCallback([]).state()
    {'args': {}, 'attributes': {'entries': []}}
    """

    def __init__(self, detectors: Sequence[Detector] = (), notify: Any = ()) -> None:
        self.detectors = tuple(detectors) if isinstance(detectors, list | tuple) else (detectors,)
        told: tuple[Callable[[Alert], Any], ...] = tuple(notify) if isinstance(notify, list | tuple) else (notify,)
        self.told = tuple(one for one in told if one is not None)
        self.ledger = Ledger()
        """What was decided."""
        for detector in self.detectors:
            _check(detector)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in the form that Trainer expects."""
        return {"args": {}, "attributes": {"entries": [asdict(entry) for entry in self.ledger]}}

    # ---- Trainer's events --------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _check_readable(self.detectors, calling_trainer(self), args)
        self.ledger = Ledger(_held(state) if state.global_step else [])
        if self.told and state.is_world_process_zero:
            notifications = Notifications(self.told, run=Path(args.output_dir).name)
            notifications.check()
            self.ledger.listener = notifications

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            return
        logs = [_as_measured(log) for log in state.log_history]
        history = History(step=state.global_step, logs=logs, entries=tuple(self.ledger))
        answers = [detector(history) for detector in self.detectors] if args.process_index == 0 else None
        for detector, decision in zip(self.detectors, from_main_rank(answers, args), strict=True):
            if decision is None:
                continue
            self.ledger.note(state.global_step, "train", decision.action, decision.reason, by=type(detector).__name__)
            logger.warning(f"step {state.global_step}: {type(detector).__name__}: {decision.reason}")
            if decision.action in ("end", "stop"):
                control.should_training_stop = True


def _as_measured(log: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a log without a loss that Trainer's filter made up: of updates that were NaN it makes values near zero.

    >>> _as_measured({"step": 5, "loss": 0.0, "raw_loss": math.nan}), _as_measured({"step": 9, "loss": 2.5})
    ({'step': 5, 'raw_loss': nan}, {'step': 9, 'loss': 2.5})
    """
    if math.isfinite(log.get("raw_loss", 0.0)) or not math.isfinite(log.get("loss", 0.0)):
        return log
    return {key: value for key, value in log.items() if key != "loss"}


def _check(detector: Any) -> None:
    """Refuse what a plain Trainer cannot ask, or cannot do."""
    if not isinstance(detector, Detector):
        raise ValueError(f"DetectorCallback: expected detectors such as Divergence(), got {detector!r}")
    name = type(detector).__name__
    if detector.on != "log":
        raise ValueError(f"DetectorCallback: {name} judges updates before they are made, which needs stages")
    for action in detector.then:  # type: ignore[union-attr]
        if not isinstance(action, StopRun | EndStage):
            raise ValueError(
                f"DetectorCallback: {name}: then: {type(action).__name__} needs stages; a plain Trainer can StopRun()"
            )


def _check_readable(detectors: Sequence[Detector], trainer: Any, args: Any) -> None:
    """Refuse detectors that read what this trainer does not log: they would find nothing, whatever happens."""
    if getattr(trainer, "recipe", None) is not None:
        raise ValueError("DetectorCallback: this trainer runs stages; give detectors to them: Stage(gates=[...])")
    check_evaluation_sets(trainer)
    # MonitorCallback is a part of a room that this one does not import, so it is known by what it holds.
    held = [getattr(callback, "monitors", ()) for callback in trainer.callback_handler.callbacks]
    monitors = [monitor for several in held if isinstance(several, tuple) for monitor in several]
    for detector in detectors:
        with place_errors(f"DetectorCallback: {type(detector).__name__}"):
            check_logged(detector, monitors, args, here="trainer", add="MonitorCallback([{}]) to its callbacks")
            evaluates_itself = type(trainer).evaluate.__module__.split(".")[0] not in ("transformers", "hf_stages")
            if detector.compares_depths and not evaluates_itself:
                raise ValueError(
                    "it compares depths of an evaluation set (eval_ppl_at_<depth>), which a plain Trainer does not "
                    "measure; use it in a stage: Stage(gates=[...], eval_dataset=AtDepths(dataset))"
                )


def _held(state: Any) -> list[Entry]:
    """Read what the checkpoint that training resumes from holds of this callback."""
    held = state.stateful_callbacks.get(DetectorCallback.__name__)
    held = held[0] if isinstance(held, list) and held else held
    return [Entry(**entry) for entry in held["attributes"]["entries"]] if isinstance(held, Mapping) else []
