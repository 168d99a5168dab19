"""What a stage starts from: its parent's model and moments, in memory or from the folder, changed by its transforms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging

from hf_stages.core.placed_errors import place_errors
from hf_stages.core.randomness import preserve_random_state, seed_of
from hf_stages.core.sealed_folders import find_damage, write_sealed_folder
from hf_stages.data.evaluation_sets import plain_set
from hf_stages.layers.activations import Activations
from hf_stages.models import optimizer_moments as moments_file
from hf_stages.models.adapter_folders import check_adapter
from hf_stages.models.adapters import is_peft
from hf_stages.models.structure import load_weights, replay, save_weights
from hf_stages.planning.plan import Plan, PlannedStage

logger = logging.get_logger(__name__)
_INITIAL = "00-initial"
_PROBED = 4
"""Examples that a claim to keep the function is checked on."""


@dataclass
class Transition:
    """A changed model, where its old parameters went, and how far each function-keeping claim was off."""

    model: Any
    moves: dict[str, list[str]]
    deviations: dict[str, float | None] = field(default_factory=dict)
    """Largest relative difference of outputs by transform; None where it could not be measured."""


class Handover:
    """Carries a run's model and moments from stage to stage. Both ways, memory and folder, give the same bits.

    Args:
        trainer: Whose model and optimizer these are.
        plan: Which stage starts from which.
    """

    def __init__(self, trainer: Any, plan: Plan) -> None:
        self.trainer, self.plan, self.args = trainer, plan, trainer.args
        self.out = Path(trainer.args.output_dir)
        self.in_memory: str | None = None
        """The stage whose result the trainer's model is."""
        self.moments: moments_file.Moments | None = None
        self._moves: dict[str, list[str]] = {}
        self._reset = True

    def begin(self, planned: PlannedStage, checkpoint: str | None) -> Transition:
        """Bring in the parent's result, apply the stage's transforms, and reset all that belonged to the old model."""
        trainer, built = self.trainer, False
        fresh = trainer._staged_take_initial_model()
        if planned.parent is not None and planned.parent == self.in_memory and not trainer.is_fsdp_enabled:
            model = trainer.model
        else:
            self._forget_wrapper()
            if planned.parent is not None:
                model = self.load_stage(planned.parent, fresh)
                self.moments = moments_file.load(self.out / self.plan[planned.parent].folder / "training_state")
            else:
                model = fresh if fresh is not None else self._initial(checkpoint)
                built = fresh is None and not (self.out / _INITIAL).is_dir()
        _unprepare(model)
        set_seed(seed_of(self.args.seed, planned.name, "transforms") & 0xFFFFFFFF)
        change = transition(trainer, model, planned)
        if built and is_peft(change.model) and not trainer.is_fsdp_enabled:
            raise ValueError(
                f"{checkpoint}: a checkpoint with an adapter holds the adapter alone, and this trainer's model was "
                "trained already; make the model and the trainer anew and resume"
            )
        check_adapter(change.model, f"stage {planned.name!r}", sharded=trainer.is_fsdp_enabled)
        trainer.adopt(change.model)
        trainer._patches.check(trainer.model, f"stage {planned.name!r}: ")
        change.model = None
        schedule = planned.stage.schedule
        self._moves, self._reset = change.moves, schedule is None or schedule.optimizer == "reset"
        return change

    def load_stage(self, name: str, model: Any = None) -> Any:
        """Load the model of a finished stage from its folder."""
        folder = self.out / self.plan[name].folder
        if (problem := find_damage(folder)) is not None:
            raise ValueError(f"{folder}: {problem}; move it away and resume to train that stage again")
        model = replay(model if model is not None else self.trainer.blueprint.build(), self.transforms_up_to(name))
        load_weights(model, folder)
        return model

    def _initial(self, checkpoint: str | None) -> Any:
        """Make the initial model a second time: an earlier ``train()`` of this trainer has changed the first."""
        model = self.trainer.blueprint.build()
        if (self.out / _INITIAL).is_dir():
            load_weights(model, self.out / _INITIAL)
        elif checkpoint is None:
            raise ValueError(
                "train: this trainer's model was trained already and nothing was saved to go on from; make the model "
                "and the trainer anew"
            )
        return model  # a checkpoint brings its own weights

    def transforms_up_to(self, name: str) -> list[Any]:
        return [transform for planned in self.plan.lineage(name) for transform in planned.stage.transforms]

    def _forget_wrapper(self) -> None:
        trainer = self.trainer
        trainer.model_wrapped = trainer.model
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()

    def carry(self, optimizer: Any) -> None:
        """Carry the parent's moments, by name, into a stage's new optimizer, where the stage says so."""
        run = self.trainer._stage
        if run.resumed is not None or self._reset or self.moments is None:
            return
        report = moments_file.restore(optimizer, self.trainer.model, self.moments, self._moves)
        self.moments = None  # the optimizer has taken the tensors over
        if report.reset:
            first = next(iter(report.reset.items()))
            run.notes.note(
                "notice",
                f"moments of {len(report.carried)} parameters carried, {len(report.reset)} start empty, "
                f"such as {first[0]}: {first[1]}",
                by="optimizer",
            )

    def keep_result(self, name: str) -> moments_file.Moments:
        """Keep what the trainer holds as the result of a stage. Collective where parameters are sharded."""
        self.in_memory = name
        if self.trainer.blueprint.buildable:  # the model may begin another run
            self.trainer.blueprint.mark(self.trainer.model, self.transforms_up_to(name))
        self.moments = moments_file.collect(self.trainer.optimizer, self.trainer.model)
        return self.moments

    def restore(self, name: str) -> None:
        """Leave the trainer with a finished stage's model, as the run that trained it did."""
        self._forget_wrapper()
        self.trainer.adopt(self.load_stage(name, self.trainer._staged_take_initial_model()))

    def keep_initial(self) -> None:
        """Save the initial model where a later stage starts from it."""
        again = any(planned.parent is None for planned in self.plan.stages[1:])
        if again and self.args.should_save and not (self.out / _INITIAL).exists():
            with write_sealed_folder(self.out / _INITIAL) as folder:
                save_weights(self.trainer.model, folder)


def _unprepare(model: Any) -> None:
    """Take off what accelerate put on the model itself, not on a wrapper of it.

    Its mark makes it pass over the model the next time, which then runs uncompiled; its autocast would nest.
    """
    model.__dict__.pop("_is_accelerate_prepared", None)
    if (forward := model.__dict__.pop("_original_forward", None)) is not None:
        del model.forward
        if getattr(forward, "__func__", None) is not type(model).forward:
            model.forward = forward


# ---- the stage's transforms ------------------------------------------------------------------------------------------


def transition(trainer: Any, model: Any, planned: PlannedStage) -> Transition:
    """Apply a stage's transforms. Errors name the stage and the transform."""
    names = [name for name, _ in model.named_parameters()]
    change = Transition(model, {name: [name] for name in names})
    batch = _probe(trainer, planned) if any(t.keeps_function for t in planned.stage.transforms) else None
    for index, transform in enumerate(planned.stage.transforms):
        label = type(transform).__name__
        before = _outputs(change.model, batch) if transform.keeps_function else None
        with place_errors(f"stage {planned.name!r}: transforms[{index}] {label}"):
            change.model = transform(change.model)
        if transform.keeps_function:
            key = label if label not in change.deviations else f"{label}_{index}"
            change.deviations[key] = _deviation(before, _outputs(change.model, batch))
        after = [name for name, _ in change.model.named_parameters()]
        step = transform.moves(names, after)
        change.moves = {old: [n for m in news for n in step.get(m, [])] for old, news in change.moves.items()}
        names = after
    return change


def _probe(trainer: Any, planned: PlannedStage) -> Any:
    """Take a few real examples, as the model will see them."""
    dataset = trainer.train_dataset if planned.size.examples is not None else plain_set(trainer.eval_dataset)
    if dataset is None or isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
        return None
    few = torch.utils.data.Subset(dataset, range(min(_PROBED, len(dataset))))
    try:
        with preserve_random_state():
            return next(iter(trainer.get_eval_dataloader(few)))
    except Exception as error:  # the stage's data may fit only the model it is about to become
        logger.info(f"stage {planned.name!r}: no batch to check the transforms on ({error})")
        return None
    finally:
        # With persistent workers Trainer would go on to evaluate on these few.
        trainer.__dict__.pop("_eval_dataloaders", None)


def _outputs(model: Any, batch: Any) -> torch.Tensor | None:
    if batch is None:
        return None
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), preserve_random_state(), _unrounded(model):
            return _logits(model(**batch)).float()
    except Exception as error:
        logger.info(f"no output to compare: {error}")
        return None
    finally:
        model.train(training)


@contextmanager
def _unrounded(model: Any) -> Iterator[None]:
    """Switch rounding of activations off: a weight's last bit may move a code by one, which is no transform's fault."""
    held = [(m, m.activations) for m in model.modules() if isinstance(getattr(m, "activations", None), Activations)]
    try:
        for module, _ in held:
            module.activations = None
        yield
    finally:
        for module, activations in held:
            module.activations = activations


def _logits(outputs: Any) -> torch.Tensor:
    return outputs["logits"] if "logits" in outputs else outputs[0]


def _deviation(before: torch.Tensor | None, after: torch.Tensor | None) -> float | None:
    if before is None or after is None or before.shape != after.shape:
        return None
    return ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()
