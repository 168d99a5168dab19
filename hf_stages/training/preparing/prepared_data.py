"""Data of stages for a trainer that tokenizes its data itself when it is made (TRL's).

``PreparedData`` takes the place of its ``_prepare_dataset``, and prepares each dataset once and by its own format. So
the plan measures what is trained on, and an evaluation set is not packed a second time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hf_stages.data.at_depths import AtDepths

_MADE_OF_IMAGES = ("image", "images")


class PreparedData:
    """Prepares each dataset once, in the place of the trainer's ``_prepare_dataset``."""

    def __init__(self, trainer: Any, inner: Callable[..., Any]) -> None:
        self.trainer, self.inner = trainer, inner
        self.parameters = inspect.signature(inner)
        self.made: dict[tuple[int, Any], tuple[Any, Any]] = {}
        """What was given and what was made of it, both held, so that no other object gets their ids."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.parameters.bind(*args, **kwargs).arguments
        if isinstance(given["dataset"], AtDepths):  # an evaluation set as the trainer was given it
            inner = {**given, "dataset": given["dataset"].dataset}
            return given["dataset"].around(self(**inner))
        dataset, key = given["dataset"], (id(given["dataset"]), given.get("packing"))
        if isinstance(dataset, str) or any(dataset is made for _, made in self.made.values()):
            return dataset
        if key not in self.made:
            with _by_its_format(self.trainer, dataset, given):
                self.made[key] = (dataset, self.inner(*args, **kwargs))
        return self.made[key][1]

    def prepare_for_stage(self, dataset: Any, name: str, where: str, *, evaluation: bool) -> Any:
        """Prepare a stage's data as the trainer's own were."""
        trainer, args = self.trainer, self.trainer.args
        if any(dataset is made for _, made in self.made.values()):
            return dataset
        if not hasattr(dataset, "map"):
            raise ValueError(
                f"{where}: the trainer prepares data by datasets.Dataset.map, got {type(dataset).__name__}; make it a "
                "Dataset (Dataset.from_list(rows)), or override stage_dataset and stage_eval_dataset"
            )
        _check_kind(trainer, next(iter(dataset), {}), where)
        if getattr(trainer, "_skip_prepare_dataset", False):
            return dataset
        packing = getattr(args, "packing", False)
        if evaluation and getattr(args, "eval_packing", None) is not None:
            packing = args.eval_packing
        known = {
            "dataset": dataset,
            "processing_class": trainer.processing_class,
            "args": args,
            "packing": packing,
            "formatting_func": getattr(trainer, "_formatting_func", None),
            "dataset_name": name,
        }
        try:
            return self(**{key: known[key] for key in self.parameters.parameters})
        except Exception as error:
            columns = ", ".join(getattr(dataset, "column_names", None) or ()) or "unknown"
            raise ValueError(
                f"{where}: could not be prepared as the trainer prepares its own data ({type(error).__name__}: "
                f"{error}); its columns "
                f"are {columns}. Bring it into that form, or override stage_dataset and stage_eval_dataset"
            ) from error


@contextmanager
def _by_its_format(trainer: Any, dataset: Any, given: Mapping[str, Any]) -> Iterator[None]:
    """Let each dataset's own format decide about ``completion_only_loss``, where the user leaves it open."""
    undecided = getattr(given.get("args"), "completion_only_loss", False) is None and hasattr(
        trainer, "completion_only_loss"
    )
    if not undecided or given.get("formatting_func") is not None:
        yield
        return
    held = trainer.completion_only_loss
    trainer.completion_only_loss = _has_completions(next(iter(dataset), {}))
    try:
        yield
    finally:
        trainer.completion_only_loss = held


def _check_kind(trainer: Any, row: Mapping[str, Any], where: str) -> None:
    """Refuse data that differ from what the trainer found in its first data and keeps for the whole run."""
    images = any(name in row for name in _MADE_OF_IMAGES)
    if images and not getattr(trainer, "_is_vision_dataset", True):
        raise ValueError(
            f"{where}: it holds images, and the trainer was made for text, by its train_dataset; make it with a "
            "train_dataset of images"
        )
    by_collator = getattr(trainer, "_is_vision_dataset", False)  # which makes the labels then, as the first data asked
    if (
        by_collator
        and _has_completions(row) is not trainer.completion_only_loss
        and trainer.args.completion_only_loss is None
    ):
        raise ValueError(
            f"{where}: completion_only_loss was set to {trainer.completion_only_loss} by the first data, and these are "
            "of the other kind; say completion_only_loss=True or False in the arguments"
        )
    if getattr(trainer.args, "assistant_only_loss", False) and "input_ids" not in row and not _is_conversation(row):
        raise ValueError(
            f"{where}: assistant_only_loss needs conversations (a column messages, or prompt and completion of "
            "messages), and the rows have "
            f"{', '.join(row)}; without them every token would be trained"
        )


def _has_completions(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and "completion" in row


def _is_conversation(row: Mapping[str, Any]) -> bool:
    held = [row.get(name) for name in ("messages", "conversations", "prompt")]
    return any(isinstance(one, list) and one and isinstance(one[0], Mapping) for one in held)
