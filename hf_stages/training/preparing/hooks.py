"""Hooks for what a trainer does to its model and its data when it is made, and must do to each stage's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.utils.generic import can_return_loss, find_labels

from hf_stages.core.batch import SOURCE, Batch
from hf_stages.core.stage import Stage
from hf_stages.data.at_depths import AtDepths
from hf_stages.data.collators.base import columns_read
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.source_column import SourceCollator
from hf_stages.models.method_patches import Patches
from hf_stages.models.model_inputs import columns_for_teacher
from hf_stages.training.preparing.prepared_data import PreparedData

# The mixin's overrides call the next trainer's own; only a type checker may think that this is always Trainer.
_Base: Any = Trainer if TYPE_CHECKING else object


class PreparingMixin(_Base):
    """The part of StagedMixin that adapts a trainer, made for one model and one dataset, to each stage's."""

    counter_names: tuple[str, ...] = ("_total_train_tokens", "_metrics")
    """Attributes in which the trainer below counts (numbers, lists, dicts): a resumed run goes on with them."""
    stage_teacher: Any = None
    _patches = Patches({})
    """What the trainer below replaced on the initial model itself."""
    _prepared: Any = None
    """The PreparedData of a trainer that prepares its data itself."""
    _staged_split_off: Batch = Batch({})
    """What stands beside the inputs of the batch at hand. The trainer has the inputs themselves, and frees them."""
    _for_teacher: frozenset[str] = frozenset()
    """Columns that the stage's teacher takes and its student does not."""

    _reductions: Any = MappingProxyType({})
    """By kind of batch what the model's loss is a mean over; anew with each model."""

    # ---- hooks for subclasses ----------------------------------------------------------------------------------------

    def prepare_model(self, model: Any) -> None:
        """A hook: do to a model, in place, what the trainer does to its own. Called with every stage's model.

        Methods that the trainer below replaced on its model (TRL's fused head) are replaced on each without a hook.
        """
        self._patches.apply(model)

    def stage_dataset(self, dataset: Any, stage: Stage) -> Any:
        """A hook: the training data of a stage, of a curriculum each source, as the collator takes them.

        Called in ``plan()``, once for each dataset and stage. A trainer that prepares its data (TRL) does so here, too.
        """
        return self._as_own(dataset, stage, "train_dataset", evaluation=False)

    def stage_eval_dataset(self, dataset: Any, stage: Stage) -> Any:
        """A hook: an evaluation set as the collator takes it; ``stage`` is the one that brought it."""
        return self._as_own(dataset, stage, "eval_dataset", evaluation=True)

    @property
    def prepares(self) -> bool:
        """Whether stages' data go through a hook that changes them."""
        hooks = ("stage_dataset", "stage_eval_dataset")
        return self._prepared is not None or any(
            getattr(type(self), h) is not getattr(PreparingMixin, h) for h in hooks
        )

    # ---- what the run calls ------------------------------------------------------------------------------------------

    def take_over_preparing(self) -> None:
        """Replace the method that prepares data, before the trainer below is made, which prepares its own then.

        A method of that name with other arguments is not TRL's.
        """
        own = getattr(self, "_prepare_dataset", None)
        if callable(own) and inspect.signature(own).parameters.keys() >= {"dataset", "processing_class", "args"}:
            self._prepared = self._prepare_dataset = PreparedData(self, own)

    def train_data(self, dataset: Any, stage: Stage) -> Any:
        """Prepare what a stage trains on, its dataset or the sources of its curriculum, by the hook."""
        if isinstance(dataset, Blend):
            return dataset.with_datasets(lambda source: self.train_data(source, stage))
        return self._once("train", dataset, stage, self.stage_dataset)

    def eval_data(self, dataset: Any, stage: Stage) -> Any:
        if isinstance(dataset, AtDepths):
            return self._once("depths", dataset, stage, lambda d, s: d.around(self.eval_data(d.dataset, s)))
        return dataset if dataset is None else self._once("eval", dataset, stage, self.stage_eval_dataset)

    def _once(self, kind: str, dataset: Any, stage: Stage, hook: Any) -> Any:
        given = self.__dict__.setdefault("_given", {})
        key = (kind, id(dataset), stage.name)
        if any(dataset is made is not source and kind == k for (k, _, _), (source, made) in given.items()):
            return (
                dataset  # prepared already; rows that a hook left as they are may still be another stage's to prepare
            )
        if key not in given:
            given[key] = (dataset, hook(dataset, stage))
        return given[key][1]

    def _as_own(self, dataset: Any, stage: Stage, word: str, *, evaluation: bool) -> Any:
        where = f"stage {stage.name!r}: {word}"
        return (
            dataset
            if self._prepared is None
            else self._prepared.prepare_for_stage(dataset, stage.name, where, evaluation=evaluation)
        )

    def adopt(self, model: Any) -> None:
        """Make a changed model the trainer's, and forget everything that was built from the old one."""
        self.prepare_model(model)
        if self.place_model_on_device:
            self._move_model_to_device(model, self.args.device)
        self.model = self.model_wrapped = model
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.model = model
        self._signature_columns, self._for_teacher, self._reductions = None, frozenset(), {}
        base = getattr(model, "get_base_model", lambda: model)()
        self.label_names = find_labels(type(base)) if self.args.label_names is None else self.args.label_names
        self.can_return_loss = can_return_loss(type(base))
        if getattr(model, "config", None) is not None:
            model.config.use_cache = self.args.use_cache

    def _staged_set_teacher(self, teacher: Any) -> None:
        """Set the stage's teacher, which may read columns that its student does not take."""
        self.stage_teacher, self._signature_columns = teacher, None
        self._for_teacher = columns_for_teacher(self.model, teacher)

    def _staged_split_batch(self, columns: Mapping[str, Any]) -> Batch:
        """Split a collated batch into the student's inputs and what only losses and the teacher read."""
        by_source = isinstance(self.data_collator, SourceCollator)
        return Batch.split(columns, by_source=by_source, teacher_only=self._for_teacher)

    def _staged_batch_of(self, inputs: Mapping[str, Any]) -> Batch:
        """The whole batch at hand; ``inputs`` are those that ``_prepare_inputs`` gave of it."""
        return self._staged_split_off.with_inputs(inputs)

    def _staged_forget_batch(self) -> None:
        self._staged_split_off = Batch({})

    # ---- Trainer's hooks ---------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        more = self._for_teacher | columns_read(self.data_collator)
        if isinstance(self.data_collator, SourceCollator):
            more |= {SOURCE}
        columns.extend(sorted(more.difference(columns)))

    def _prepare_inputs(self, inputs):
        prepared = super()._prepare_inputs(inputs)
        if not isinstance(prepared, Mapping):
            return prepared
        batch = self._staged_split_batch(prepared)
        self._staged_split_off = batch.with_inputs({})
        return batch.inputs if batch.is_split else prepared  # the trainer's own object, where nothing was split off
