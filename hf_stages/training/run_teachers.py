"""The teachers of a run: each is checked before the first step, and loaded when its stage begins."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from transformers.utils import logging

from hf_stages.core.batch import SOURCE
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.references import teaching_stage
from hf_stages.core.stage import own_or_shared
from hf_stages.data.collators.base import columns_read
from hf_stages.planning.plan import PlannedStage
from hf_stages.planning.resolved import ResolvedRecipe, ResolvedStage
from hf_stages.teachers.cache_reader import check_same_teacher, check_vocabulary, find_rows
from hf_stages.teachers.declared import CachedTeacher, Teacher
from hf_stages.teachers.row_keys import rows_of_batch

logger = logging.get_logger(__name__)


class Teachers:
    """Finds each stage's teacher. One that is loaded by its name stays in memory until a stage has another."""

    def __init__(self, trainer: Any, handover: Any) -> None:
        self.trainer, self.handover = trainer, handover
        self._loaded: tuple[Any, Any] = (None, None)

    def for_stage(self, planned: PlannedStage) -> Any:
        """Give a model, a cache, or the word for the student's own base; None where no loss asks."""
        teacher = own_or_shared(planned.stage, "teacher", self.trainer)
        if teacher is None or not self.trainer.wants_teacher(planned.stage):
            return None
        if (earlier := teaching_stage(teacher)) is not None:
            return self.handover.load_stage(earlier)
        return self._load(teacher, planned) if isinstance(teacher, Teacher) else teacher

    def _load(self, teacher: Teacher, planned: PlannedStage) -> Any:
        if self._loaded[0] is not teacher:
            trainer = self.trainer
            self._loaded = (None, None)  # the one before goes first
            with place_errors(f"stage {planned.name!r}: teacher", ValueError, OSError):
                options = {"device": trainer.args.device, "trust_remote_code": trainer.trust_remote_code}
                self._loaded = (teacher, teacher.load(trainer.model, **options))
        return self._loaded[1]


# ---- before the first step -------------------------------------------------------------------------------------------


def check_declared(trainer: Any, stage: ResolvedStage, resolved: ResolvedRecipe) -> None:
    """Check a cached teacher: its vocabulary, its state, and whether it is of this data."""
    teacher = stage.teacher
    if not isinstance(teacher, CachedTeacher):
        return
    first = next(one for one in resolved if one.teacher is teacher) is stage
    with place_errors(f"stage {stage.name!r}: teacher", ValueError, OSError):
        check_vocabulary(teacher, trainer.processing_class)
        if first:
            check_same_teacher(teacher)
        _check_rows(trainer, stage, teacher)


def _check_rows(trainer: Any, stage: ResolvedStage, cached: CachedTeacher) -> None:
    """Look the first rows up, as training would batch them. What cannot be tried here is left to the first step."""
    dataset = trainer.train_data(stage.dataset, stage.stage)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return
    collator = own_or_shared(stage.stage, "data_collator", trainer)
    if SOURCE in columns_read(collator):
        return  # which collator a row is for, only drawing it tells
    trainer._staged_set_teacher(cached)
    try:
        with preserve_random_state():
            if hasattr(dataset, "column_names"):
                dataset = trainer._remove_unused_columns(dataset, description="Training")
            else:
                collator = trainer._get_collator_with_removed_columns(collator, description="Training")
            rows = [dict(dataset[i]) for i in range(min(2, len(dataset)))]
            batch = collator([{key: value for key, value in row.items() if key != SOURCE} for row in rows])
    except Exception as error:  # of the data or the collator, which training will report in its own words
        logger.info(f"stage {stage.name!r}: the first rows were not looked up in the teacher's cache: {error}")
        return
    finally:
        trainer._staged_set_teacher(None)
    if isinstance(batch, Mapping):
        find_rows(cached.store, rows_of_batch(cached.model, batch), batch)
