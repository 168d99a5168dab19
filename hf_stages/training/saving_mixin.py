"""What a stage adds to Trainer's checkpoints, and what it keeps out of saved models."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from hf_stages.hub.run_card import write_run_card
from hf_stages.training.checkpoints import load_checkpoint, remove_hub_token, save_checkpoint

# The mixin's overrides call the next trainer's own; only a type checker may think that this is always Trainer.
_Base: Any = Trainer if TYPE_CHECKING else object


class SavingMixin(_Base):
    """The part of StagedMixin that saves and loads. Each override is Trainer's own without stages."""

    recipe: Any
    _stage: Any

    def _save_checkpoint(self, model, trial):
        if self._stage is None:
            return super()._save_checkpoint(model, trial)
        inner = super()._save_checkpoint
        save_checkpoint(self, lambda: inner(model, trial))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self._stage is None:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        inner = super()._load_from_checkpoint
        with self._stage.losses.detached():
            load_checkpoint(self, resume_from_checkpoint, lambda: inner(resume_from_checkpoint, model))
        self._stage.losses.load(Path(resume_from_checkpoint))

    def _load_best_model(self):
        if self._stage is None:
            return super()._load_best_model()
        inner = super()._load_best_model
        with self._stage.losses.detached():
            load_checkpoint(self, self.state.best_model_checkpoint, inner)

    def _save(self, output_dir=None, state_dict=None):
        with self._stage.losses.detached() if self._stage is not None else nullcontext():
            super()._save(output_dir, state_dict)
        if self.recipe is not None and self.args.should_save:
            remove_hub_token(Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME, self.args)

    def create_model_card(self, *args, **kwargs):
        if self.recipe is None:
            return super().create_model_card(*args, **kwargs)
        return write_run_card(self, super().create_model_card, args, kwargs)
