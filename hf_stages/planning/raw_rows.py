"""Checks of each dataset's first row: it must hold an input of the model, and labels where the loss needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from transformers import DataCollatorWithPadding, default_data_collator
from transformers.utils.generic import can_return_loss, find_labels

from hf_stages.core.randomness import preserve_random_state
from hf_stages.data.collators.base import columns_read
from hf_stages.layers.blocks import base_of
from hf_stages.losses.objective.terms import terms_of
from hf_stages.models.model_inputs import columns_of
from hf_stages.planning.domains import evaluation_sets
from hf_stages.planning.resolved import ResolvedRecipe, ResolvedStage
from hf_stages.planning.stage_args import stage_args

_LABELS = {"labels", "label", "label_ids", "return_dict", "args", "kwargs"}
_HOOKS = {"_set_signature_columns_if_needed", "_remove_unused_columns", "get_train_dataloader"}


def prepares_own_rows(trainer: Any) -> bool:
    """Tell whether a subclass of the trainer makes batches of rows in a way of its own."""
    foreign = [
        kind for kind in type(trainer).__mro__ if kind.__module__.split(".")[0] not in ("hf_stages", "transformers")
    ]
    return trainer.prepares or any(_HOOKS & vars(kind).keys() for kind in foreign)


def check_rows(resolved: ResolvedRecipe, args: Any, skeletons: Mapping[str, Any]) -> None:
    """Raise ValueError where the first row of a stage's data has no input of the stage's model, such as raw text."""
    for stage, key, dataset in _datasets(resolved):
        model = skeletons.get(stage.name)
        collator = stage.data_collator
        foreign = collator is not None and type(collator).__module__.split(".")[0] not in (
            "transformers",
            "hf_stages",
            "builtins",
        )
        if model is None or (foreign and not stage_args(args, stage.stage).remove_unused_columns):
            continue  # the collator sees whole rows and may do what it likes
        inputs = columns_of(model) - _LABELS - {*find_labels(type(base_of(model)))} | columns_read(collator)
        row = _first(dataset)
        if not isinstance(row, Mapping) or not row or not inputs or inputs & row.keys():
            continue
        main = getattr(base_of(model), "main_input_name", "input_ids")
        raise ValueError(
            f"stage {stage.name!r}: {key}: its rows hold {', '.join(map(str, row))}, and "
            f"{type(base_of(model)).__name__} takes none of these as input (it takes {main} and such); {_mend(row)}"
        )


def check_labels(resolved: ResolvedRecipe, args: Any, skeletons: Mapping[str, Any]) -> None:
    """Raise ValueError where a stage trains by its model's own loss, and neither rows nor collator bring labels."""
    for stage, key, dataset in _datasets(resolved):
        model = skeletons.get(stage.name)
        terms = terms_of(stage.loss)
        if key != "train_dataset" or model is None or not any("loss" in term.loss.needs for term in terms):
            continue
        collator = stage.data_collator
        plain = collator in (None, default_data_collator) or type(collator) is DataCollatorWithPadding
        kind, row = type(base_of(model)), _first(dataset)
        if not plain or can_return_loss(kind) or not isinstance(row, Mapping) or not row:
            continue
        names = stage_args(args, stage.stage).label_names or find_labels(kind)
        if not {*names, *_LABELS, "shift_labels"} & row.keys():
            raise ValueError(
                f"stage {stage.name!r}: {key}: its rows hold {', '.join(map(str, row))}, and the loss of "
                f"{kind.__name__} needs {' or '.join(names) or 'labels'}; add them to the rows, give a data_collator "
                "that makes them (DataCollatorForLanguageModeling), or compare with a teacher alone"
            )


def _mend(row: Mapping[str, Any]) -> str:
    texts = [str(name) for name, value in row.items() if isinstance(value, str)]
    if not texts:
        return (
            "prepare the rows with the model's processor first (dataset.map), or give a data_collator that does, with "
            "remove_unused_columns=False"
        )
    return (
        f"tokenize first. In a recipe: tokenizer: ..., and text: {texts[0]} in the source. In Python: "
        f"dataset.map(lambda rows: tokenizer(rows[{texts[0]!r}], truncation=True), batched=True)"
    )


def _datasets(resolved: ResolvedRecipe) -> Iterator[tuple[ResolvedStage, str, Any]]:
    for stage in resolved:
        for dataset in stage.sources:
            yield stage, "train_dataset", dataset
    for stage, dataset in evaluation_sets(resolved):
        yield stage, "eval_dataset", dataset


def _first(dataset: Any) -> Any:
    """Return the first row; None where reading it would take it from whoever reads the stream next."""
    with preserve_random_state():
        if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__"):
            return dataset[0] if len(dataset) else None
        return next(iter(dataset.take(1)), None) if hasattr(dataset, "take") else None
