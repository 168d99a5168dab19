"""StagedTrainer: a transformers Trainer whose ``train()`` runs a declared sequence of stages.

Thin on purpose: each override hands over to the stage in progress (``_stage``) and is Trainer's own without one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging

from hf_stages.core.folder_lock import lock_folder_on_all_ranks
from hf_stages.core.ranks import check_launch
from hf_stages.core.stage import Recipe, Stage
from hf_stages.data.collators.collator import Collator
from hf_stages.data.evaluation_sets import depths_of
from hf_stages.data.source import Source
from hf_stages.data.stage_collator import prepare_collator
from hf_stages.evaluation.evaluation_mixin import EvaluationMixin
from hf_stages.losses.objective.stage_losses import wants_teacher
from hf_stages.models.method_patches import Patches
from hf_stages.models.stage_models import load_stage
from hf_stages.models.structure import Blueprint
from hf_stages.planning.args_values import check_args
from hf_stages.planning.kept_plan import KeptPlan
from hf_stages.planning.plan import Plan
from hf_stages.planning.unused_args import unused_args
from hf_stages.recipes.parts_by_name import with_parts, with_trainer_parts
from hf_stages.reports.tables.plan_table import plan_table
from hf_stages.training.callbacks import OneRun
from hf_stages.training.checked_plan import plan_trainer
from hf_stages.training.lent_trainer import OwnSettings
from hf_stages.training.loop_mixin import LoopMixin
from hf_stages.training.preparing.deferred_data import defer_train_dataset
from hf_stages.training.preparing.hooks import PreparingMixin
from hf_stages.training.progress_bar import StageProgress
from hf_stages.training.runner import Runner
from hf_stages.training.saving_mixin import SavingMixin
from hf_stages.training.shown_signature import signature_of
from hf_stages.training.stage.stage_rates import adopt_optimizer_rate
from hf_stages.training.stage.stopping import StopRequest

logger = logging.get_logger(__name__)
_SHARED = ("train_dataset", "eval_dataset", "data_collator", "compute_metrics")


class StagedMixin(EvaluationMixin, PreparingMixin, LoopMixin, SavingMixin):
    """Stages for any subclass of Trainer that keeps Trainer's hooks: ``class StagedX(StagedMixin, XTrainer): ...``.

    Without ``stages`` nothing is changed: it is that trainer, bit for bit.
    """

    recipe: Any = None
    """The run as declared; None without stages."""
    teacher: Any = None
    probe_teacher = True
    """Whether each stage first tries its teacher on some of its rows, to refuse other label orders and other tokens."""
    trust_remote_code = False
    """Whether a teacher's own code may run, where it is loaded by its name."""
    _stage: Any = None
    """The StageRun in progress."""
    _runner: Any = None
    _staged_plan_at_hand: KeptPlan | None = None
    """Made and checked before the trainer was; the first run takes it over, unless something has changed since."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = signature_of(cls, StagedMixin)

    def __init__(
        self,
        *args: Any,
        stages: Sequence[Stage] | None = None,
        recipe: Recipe | None = None,
        teacher: Any = None,
        notify: Any = None,
        **kwargs: Any,
    ) -> None:
        self._stop_request = StopRequest()
        if recipe is not None:
            given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
            kwargs |= _inputs_of_recipe(recipe, given)
            teacher = teacher if teacher is not None else recipe.teacher
        staged = stages is not None or recipe is not None
        if staged:
            self.take_over_preparing()
        args, deferred = defer_train_dataset(
            inspect.signature(super().__init__), args, kwargs,
            staged=staged, prepares=self._prepared is not None, sources=recipe.sources if recipe else {},
        )  # fmt: skip
        super().__init__(*args, **kwargs)
        if deferred is not None:
            self.train_dataset = deferred
        if not staged:
            _refuse_without_stages(deferred, teacher, self.eval_dataset, notify)
            return
        if stages is not None and recipe is not None:
            raise ValueError("expected stages or a recipe, got both")
        declared = Recipe(
            stages if stages is not None else recipe.stages,  # type: ignore[union-attr]
            model=self.model,
            args=recipe.args if recipe else {},
            sources=recipe.sources if recipe else {},
            teacher=teacher,
            notify=notify if notify is not None else recipe.notify if recipe is not None else (),
            **{k: getattr(self, k) for k in _SHARED},
        )
        self._staged_set_up(declared)

    def _staged_set_up(self, declared: Recipe) -> None:
        """Take the recipe as the trainer's, and replace what serves one training by what serves a run of stages."""
        self.recipe = with_trainer_parts(with_parts(declared), self.processing_class, self.model)
        for key in ("teacher", "data_collator", "compute_metrics"):
            setattr(self, key, getattr(self.recipe, key))
        self._staged_check()
        check_args(self.args)
        adopt_optimizer_rate(self)
        self._weighs_items = True
        self.data_collator: Any = prepare_collator(self.data_collator, self.processing_class, self.model)
        for unused in unused_args(self.args, self.recipe):
            logger.warning(unused)
        self.model_init = None  # it has made the model; made again for each stage, it would undo the stages
        self.blueprint, self._patches = Blueprint(self.model), Patches.read(self.model)
        self._staged_is_untrained = True
        self.callback_handler: Any = OneRun.around(self.callback_handler)
        for callback in [c for c in self.callback_handler.callbacks if type(c) is ProgressCallback]:
            place = self.callback_handler.callbacks.index(callback)
            self.callback_handler.callbacks[place] = StageProgress()

    # ---- what a user calls -------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Compute the plan; printed, it is a table. Raises every error that can be known before the first step."""
        if self.recipe is None:
            raise ValueError("plan: expected a trainer with stages")
        return replace(plan_trainer(self), show=self._plan_table)

    def _plan_table(self, plan: Plan) -> str:
        return plan_table(plan, model=self.blueprint.build("meta") if self.blueprint.buildable else None)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None, **kwargs):
        """Run every stage that is not done. ``resume_from_checkpoint=True`` goes on where the run was cut."""
        inner = super().train
        if self.recipe is None:
            return inner(resume_from_checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval, **kwargs)
        if trial is not None:
            raise ValueError("hyperparameter search: expected a trainer without stages; search one stage at a time")
        self._runner = Runner(self, self.plan())
        self._staged_plan_at_hand = None  # a run binds the plan's data to itself
        try:
            with lock_folder_on_all_ranks(Path(self.args.output_dir), self.args):
                return self._runner.run(
                    resume_from_checkpoint,
                    lambda checkpoint: inner(checkpoint, ignore_keys_for_eval=ignore_keys_for_eval, **kwargs),
                )
        finally:
            self._runner = None
            self._stop_request.reason = None  # asked as the run ended, it is not for the next one

    def request_stop(self, reason: str) -> None:
        """Ask the run to save a checkpoint after the current update and stop with ``RunInterrupted``.

        Asked on one rank, all stop together, an update later. Where a stage is ending, its folder is the checkpoint.
        Before ``train()`` it holds for the run that begins next.
        """
        self._stop_request.reason = reason

    @classmethod
    def from_stage(cls, folder: str | Path, args=None, *, trust_remote_code: bool = False, **kwargs: Any):
        """Make a trainer around a stage folder's model, ready to evaluate, to predict or to train on."""
        model, processing_class = load_stage(folder, trust_remote_code=trust_remote_code)
        kwargs.setdefault("processing_class", processing_class)
        trainer = cls(model, args, **kwargs)
        trainer._weighs_items = True  # as its stage was measured
        return trainer

    # ---- what the run calls ------------------------------------------------------------------------------------------

    def _staged_take_initial_model(self) -> Any:
        """Give the initial model, the first time; None once it was trained."""
        untrained, self._staged_is_untrained = self._staged_is_untrained, False
        return self.model if untrained else None

    @property
    def _staged_own_settings(self) -> OwnSettings:
        """What the trainer was made with, while a run sets it to its stages."""
        return self._runner.lent.own

    @property
    def _staged_run_plan(self) -> Plan:
        """The plan of the run in progress."""
        return self._runner.plan

    def wants_teacher(self, stage: Stage) -> bool:
        return wants_teacher(stage)

    def _staged_check(self) -> None:
        check_launch(self.args)
        structural = any(t.structural for stage in self.recipe.stages for t in stage.transforms)
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise ValueError(
                "optimizers: each stage makes its own optimizer and schedule; use args.optim or "
                "optimizer_cls_and_kwargs, and "
                "Stage(schedule=...)"
            )
        if self.is_deepspeed_enabled and structural:
            raise ValueError(
                "DeepSpeed with transforms that change parameters is not tested and refused; use DDP or FSDP2"
            )
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError(
                "fsdp: accelerate does not shard on this device and would silently run DDP; leave fsdp out (CPU), or "
                "use GPUs"
            )
        if self.is_fsdp_enabled and getattr(self.accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
            raise ValueError("FSDP version 1 cannot carry moments by name; set fsdp_version: 2")


def _inputs_of_recipe(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read from a recipe what it holds itself and the trainer is not given."""
    found = {}
    for name in _SHARED:
        value = getattr(recipe, name)
        if value is None or given.get(name) is not None:
            continue
        if isinstance(value, Source | Collator):
            raise ValueError(
                f"recipe: {name} is to be loaded ({value!r}); make the trainer by "
                f"hf_stages.training.from_recipe.build_trainer(recipe), or give {name}"
            )
        found[name] = value
    return found


def _refuse_without_stages(deferred: Any, teacher: Any, evaluated: Any, notify: Any) -> None:
    if deferred is not None:
        raise ValueError(
            f"train_dataset: {type(deferred).__name__} draws over a stage's length; expected stages=[...] with it"
        )
    if teacher is not None:
        raise ValueError("teacher: expected together with stages, whose losses use it; got a teacher without stages")
    if notify is not None:
        raise ValueError("notify: expected together with stages, whose gates it tells of; got it without stages")
    if any(map(depths_of, evaluated.values() if isinstance(evaluated, Mapping) else [evaluated])):
        raise ValueError(
            "eval_dataset: AtDepths is expected together with stages: without them this is Trainer, which knows no "
            "depths; write stages=[Stage(name, until)], or give the dataset itself"
        )


class StagedTrainer(StagedMixin, Trainer):
    """``transformers.Trainer`` whose ``train()`` runs a declared sequence of stages.

    Args:
        stages: What the run does, in order, each with a folder in ``args.output_dir``. None: this is ``Trainer``.
        recipe: A ``Recipe`` in their place, which may hold data and arguments as well.
        teacher: The model (or ``Teacher``, ``CachedTeacher``, path) that stages with such losses learn from.
        notify: Whom to tell what gates decide: a function of an ``Alert``, ``Webhook()``, or several.

    All other arguments are ``Trainer``'s own::

        trainer = StagedTrainer(
            model,
            TrainingArguments("out", learning_rate=5e-5),
            stages=[
                Stage("language", until="2000 steps", train_dataset=text),
                Stage("code", until="1 epochs", train_dataset=code, schedule=Rewarm(to=2e-5)),
            ],
            eval_dataset={"text": held_out_text, "code": held_out_code},
        )
        print(trainer.plan())
        trainer.train()
    """
