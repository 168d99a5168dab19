"""A stage's data, learning rate and updates, at the places where Trainer's training loop asks for them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from hf_stages.core.micro_batch import in_micro_batch
from hf_stages.layers.quantized import is_range_parameter
from hf_stages.losses.objective.micro_batch_loss import replace_compute_loss, update_loss
from hf_stages.training.stage.cut_stage import restore_trainer_state
from hf_stages.training.stage.stage_rates import check_rates

# The mixin's overrides call the next trainer's own; only a type checker may think that this is always Trainer.
_Base: Any = Trainer if TYPE_CHECKING else object


class LoopMixin(_Base):
    """The part of StagedMixin within Trainer's loop. Each override is Trainer's own while no stage is in progress."""

    recipe: Any
    _stage: Any
    _runner: Any

    def get_train_dataloader(self):
        if self._stage is None:
            return super().get_train_dataloader()
        with self._stage.feed.reading():
            return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset=None):
        if self._stage is None:
            return super()._get_train_sampler(train_dataset)
        return self._stage.feed.make_sampler(super()._get_train_sampler)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self._stage is None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer if optimizer is not None else self.optimizer
        check_rates(self, optimizer)
        self._runner.handover.carry(optimizer)
        multiplier = self._stage.rate.multiplier
        self.lr_scheduler = LambdaLR(optimizer, lambda step: multiplier(step))
        return self.lr_scheduler

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, *args, **kwargs):
        position = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args, **kwargs)
        if self._stage is None:
            return position
        return restore_trainer_state(self._stage, num_update_steps_per_epoch, self._runner.carried)

    def _run_epoch(self, **kwargs):
        return super()._run_epoch(**(kwargs if self._stage is None else self._stage.feed.enter_epoch(kwargs)))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self._stage is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        stage = self._stage
        with stage.monitors.reading():
            batches = stage.feed.take(epoch_iterator, num_batches)
        if stage.open_update(batches):
            batches = stage.feed.take(epoch_iterator, num_batches)
            stage.open_update(batches)
        return batches, None

    def training_step(self, model, inputs, *args, **kwargs):
        if self._stage is None:
            return super().training_step(model, inputs, *args, **kwargs)
        place, running = self._stage.progress.next_micro_batch(self.args.seed), self._stage.gates.updates.running
        if running is not None and place.number == 0:
            running.open_update()
        with in_micro_batch(place), replace_compute_loss(self, partial(update_loss, self)):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self._stage.monitors.micro_batch(loss, inputs)
        if self.accelerator.sync_gradients:
            with self._stage.gates.incidents.of_a_stop():
                self._stage.objective.close_update(loss)
            self._stage.monitors.end_gradients()
        if running is None:
            return loss
        return running.take_in(loss, self._stage.objective, closed=self.accelerator.sync_gradients)

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        if self._stage is not None:
            self._stage.monitors.gradient_norm(norm)
            self._stage.gates.updates.judge(norm)
        return norm

    def log(self, logs, *args, **kwargs):
        if self._stage is not None:
            logs["stage"] = self._stage.planned.index
            if "loss" in logs:
                if self._stage.gates.updates.running is not None:
                    self._stage.gates.updates.running.correct(logs, self._stage.objective)
                logs.update(self._stage.watch(self.model))
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model):
        names = super().get_decay_parameter_names(model)
        # Decayed, a learned scale or range would shrink towards nothing, however large its weights are.
        return names if self.recipe is None else [name for name in names if not is_range_parameter(name)]

    def _finalize_training(self, trial, num_train_samples, start_time):
        if self._stage is not None:
            # Trainer takes the share of all steps that this call trained; here that is the stage's, from its own start.
            num_train_samples = self.state.max_steps * self.get_total_train_batch_size(self.args)
            start_time -= self._stage.progress.seconds_before
            if self._stage.gates.updates.running is not None:
                self._stage.gates.updates.running.correct_total(self._stage.objective, self._stage.progress.steps)
        return super()._finalize_training(trial, num_train_samples, start_time)
