"""A trainer while a run lends it to its stages: the attributes that a stage sets, and how all of them are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments

from hf_stages.training.stage.stage_inputs import StageInputs
from hf_stages.training.stage.stage_rates import with_learning_rate


@dataclass(frozen=True)
class OwnSettings:
    """Holds what a trainer was made with. A stage that names nothing of its own uses these."""

    args: TrainingArguments
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    compute_metrics: Any
    optimizer_cls_and_kwargs: tuple[Any, Mapping[str, Any]] | None


class LentTrainer:
    """Sets a trainer to one stage after the other. No other module of the run sets what is put back here.

    Args:
        trainer: As the user made it; what it holds now is what it gets back.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.own = OwnSettings(**{field.name: getattr(trainer, field.name) for field in fields(OwnSettings)})
        self._finds_unused = getattr(self._ddp, "find_unused_parameters", False)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Lend the trainer to a run, whose callbacks see one training from its first stage to its last."""
        handler = self.trainer.callback_handler
        began, handler.has_begun = handler.has_begun, False
        try:
            yield
        finally:
            self._take_back()
            trainer = self.trainer
            if handler.has_begun:
                trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)
            handler.has_begun = began

    def set_args(self, args: TrainingArguments) -> None:
        self.trainer.args = args
        self.trainer._train_batch_size = args.train_batch_size  # Trainer reads it once, when it is made

    def set_inputs(self, inputs: StageInputs) -> None:
        for name, value in vars(inputs).items():
            setattr(self.trainer, name, value)
        self.trainer.__dict__.pop("_eval_dataloaders", None)  # persistent workers hold the stage before's data

    def set_learning_rate(self, peak: float) -> None:
        self.trainer.optimizer_cls_and_kwargs = with_learning_rate(self.own.optimizer_cls_and_kwargs, peak)

    def set_unused_parameters(self, some: bool) -> None:
        """Let DDP look for parameters without a gradient. The setting is read each time a model is wrapped."""
        if self._ddp is not None:
            self._ddp.find_unused_parameters = self._finds_unused or some

    def set_teacher(self, teacher: Any, collator: Any) -> None:
        """Set the stage's teacher, and the collator as it is with the stage's model."""
        self.trainer.data_collator = collator
        self.trainer._staged_set_teacher(teacher)

    def begin(self, run: Any) -> None:
        """Hand Trainer's loop and callbacks over to a StageRun."""
        self.trainer.callback_handler.stage = self.trainer._stage = run
        self.trainer.loss_is_scaled_for_ga = True  # the objective divides by the items of the whole update

    def end(self) -> None:
        """Count no update from here on. Callbacks still see the stage."""
        self.trainer._stage = None

    def _take_back(self) -> None:
        trainer = self.trainer
        for name, value in vars(self.own).items():
            setattr(trainer, name, value)
        trainer._train_batch_size = trainer.args.train_batch_size
        self.set_unused_parameters(False)
        trainer._stage = trainer.callback_handler.stage = None
        trainer._staged_forget_batch()
        trainer._staged_set_teacher(None)
        trainer.__dict__.pop("loss_is_scaled_for_ga", None)

    @property
    def _ddp(self) -> Any:
        return self.trainer.accelerator.ddp_handler
