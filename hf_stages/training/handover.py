"""What a stage starts from: its parent's model and moments, in memory or from the folder, changed by its transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_stages.core.randomness import seed_of
from hf_stages.core.sealed_folders import broken, written_whole
from hf_stages.models import optimizer_moments as moments_file
from hf_stages.models.adapter_folders import check_adapter
from hf_stages.models.adapters import is_peft
from hf_stages.models.structure import load_weights, replay, save_weights
from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.training.transition import Transition, transition

_INITIAL = "00-initial"


class Handover:
    """Carries a run's model and moments over its boundaries. Both ways, memory and folder, give the same bits."""

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
        fresh = trainer.take_fresh()
        if planned.parent is not None and planned.parent == self.in_memory and not trainer.is_fsdp_enabled:
            model = trainer.model
        else:
            self._forget_wrapper()
            if planned.parent is not None:
                model = self.saved(planned.parent, fresh)
                self.moments = moments_file.load(self.out / self.plan[planned.parent].folder / "training_state")
            else:
                model = fresh if fresh is not None else self._initial(checkpoint)
                built = fresh is None and not (self.out / _INITIAL).is_dir()
        _unprepare(model)
        set_seed(seed_of(self.args.seed, planned.name, "transforms") & 0xFFFFFFFF)
        change = transition(trainer, model, planned)
        if built and is_peft(change.model) and not trainer.is_fsdp_enabled:
            raise ValueError(
                f"{checkpoint}: a checkpoint with an adapter holds the adapter alone, and this trainer's model was trained "
                "already; make the model and the trainer anew and resume"
            )
        check_adapter(change.model, f"stage {planned.name!r}", sharded=trainer.is_fsdp_enabled)
        trainer.adopt(change.model)
        trainer._patches.check(trainer.model, f"stage {planned.name!r}: ")
        change.model = None
        schedule = planned.stage.schedule
        self._moves, self._reset = change.moves, schedule is None or schedule.optimizer == "reset"
        return change

    def saved(self, name: str, model: Any = None) -> Any:
        """The model of a finished stage, from its folder."""
        folder = self.out / self.plan[name].folder
        if (problem := broken(folder)) is not None:
            raise ValueError(f"{folder}: {problem}; move it away and resume to train that stage again")
        model = replay(model if model is not None else self.trainer.blueprint.build(), self.transforms_up_to(name))
        load_weights(model, folder)
        return model

    def _initial(self, checkpoint: str | None) -> Any:
        """The initial model a second time: an earlier ``train()`` of this trainer has changed the first."""
        model = self.trainer.blueprint.build()
        if (self.out / _INITIAL).is_dir():
            load_weights(model, self.out / _INITIAL)
        elif checkpoint is None:
            raise ValueError(
                "train: this trainer's model was trained already and nothing was saved to go on from; make the model and "
                "the trainer anew"
            )
        return model  # a checkpoint brings its own weights

    def transforms_up_to(self, name: str) -> list[Any]:
        chain: list[Any] = []
        current: str | None = name
        while current is not None:
            chain = [*self.plan[current].stage.transforms, *chain]
            current = self.plan[current].parent
        return chain

    def _forget_wrapper(self) -> None:
        trainer = self.trainer
        trainer.model_wrapped = trainer.model
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()

    def carry(self, optimizer: Any) -> None:
        """Called when a stage's optimizer is made: carry the parent's moments, by name, where the stage says so."""
        run = self.trainer._stage
        if run.resumed is not None or self._reset or self.moments is None:
            return
        report = moments_file.restore(optimizer, self.trainer.model, self.moments, self._moves)
        self.moments = None  # the optimizer has taken the tensors over
        if report.reset:
            first = next(iter(report.reset.items()))
            run.note(
                "notice",
                f"moments of {len(report.carried)} parameters carried, {len(report.reset)} start empty, "
                f"such as {first[0]}: {first[1]}",
                by="optimizer",
            )

    def keep(self, name: str) -> moments_file.Moments:
        """A stage has ended: its result is what the trainer holds. Collective where parameters are sharded."""
        self.in_memory = name
        if self.trainer.blueprint.buildable:  # the model may begin another run
            self.trainer.blueprint.mark(self.trainer.model, self.transforms_up_to(name))
        self.moments = moments_file.collect(self.trainer.optimizer, self.trainer.model)
        return self.moments

    def take_up(self, name: str) -> None:
        """Leave the trainer with a finished stage's model, as the run that trained it did."""
        self._forget_wrapper()
        self.trainer.adopt(self.saved(name, self.trainer.take_fresh()))

    def keep_initial(self) -> None:
        """A later stage that starts from the initial model needs it kept."""
        again = any(planned.parent is None for planned in self.plan.stages[1:])
        if again and self.args.should_save and not (self.out / _INITIAL).exists():
            with written_whole(self.out / _INITIAL) as folder:
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
