"""Checks that teacher and student mean the same by the same number: tokens by their tokenizers, classes by a trial.

Nothing fails where they differ: the loss falls, and the student learns wrong answers. MNLI's checkpoints number their
labels in at least two orders; vocabularies of one size may hold other tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from hf_stages.core.batch import SOURCE
from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.stage import Recipe
from hf_stages.data.collators.base import columns_read
from hf_stages.data.drawing.blend import SizedBlend
from hf_stages.data.source_column import SourceCollator
from hf_stages.models.model_source import ModelSource
from hf_stages.models.outputs import outputs_of
from hf_stages.models.signals import Head
from hf_stages.teachers.declared import Teacher

logger = logging.get_logger(__name__)

_ROWS = 128
_BATCH = 16
_CLASSES = 16
"""With more classes than this, so few rows would tell too little."""
_TOKENS = 2048
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "tokenizer.model")
_ENCODING = ("cls", "sep", "mask")
"""Special tokens that change what a model reads. Others may differ, as between a base model and its chat version."""


# ---- tokens ---------------------------------------------------------------------------------------------------------


def check_tokenizers(student: Any, teacher: Any, where: str) -> None:
    """Refuse two tokenizers that do not number the same tokens in the same way."""
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine == theirs:
        _check_special(student, teacher, where)
        return
    mend = "give the student the teacher's tokenizer, or take a teacher with the student's"
    names, other = ({number: token for token, number in vocab.items()} for vocab in (mine, theirs))
    apart = [n for n in sorted(names.keys() & other.keys()) if names[n] != other[n]]
    if apart:
        shown = ", ".join(f"{n} is {names[n]!r} here and {other[n]!r} there" for n in apart[:3])
        more = f", and {len(apart) - 3} more" if len(apart) > 3 else ""
        raise ValueError(f"{where}: its tokenizer numbers other tokens than the student's: {shown}{more}; {mend}")
    extra = sorted(names.keys() ^ other.keys())
    shown = ", ".join(repr(names.get(n, other.get(n))) for n in extra[:3])
    raise ValueError(
        f"{where}: its tokenizer has {len(theirs)} tokens and the student's {len(mine)}; {shown}"
        f"{', ...' if len(extra) > 3 else ''} in one alone; {mend}"
    )


def _check_special(student: Any, teacher: Any, where: str) -> None:
    for name in _ENCODING:
        mine, theirs = (getattr(tokenizer, f"{name}_token", None) for tokenizer in (student, teacher))
        if None not in (mine, theirs) and mine != theirs:
            raise ValueError(
                f"{where}: the {name} token is {mine!r} in the student's tokenizer and {theirs!r} in the teacher's; "
                f"set tokenizer.{name}_token alike"
            )


def check_teacher_tokenizers(recipe: Recipe, processing_class: Any) -> None:
    """Compare the student's tokenizer with each teacher's: as given, or beside its weights in a folder.

    It asks no network.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not hasattr(tokenizer, "get_vocab"):
        return
    holders: list[tuple[str, Any]] = [
        ("teacher", recipe),
        *((f"stage {stage.name!r}: teacher", stage) for stage in recipe.stages),
    ]
    for where, holder in holders:
        given = holder.teacher.tokenizer if isinstance(holder.teacher, Teacher) else None
        if given is None:
            folder = folder_of(holder.teacher)
            given = folder if folder is not None and any((folder / name).is_file() for name in _FILES) else None
        try:
            other = (
                AutoTokenizer.from_pretrained(given, local_files_only=True) if isinstance(given, str | Path) else given
            )
        except Exception as error:  # code of its own, another library, not on this machine
            logger.info(f"{where}: its tokenizer in {given} could not be read and was not compared ({error})")
            continue
        if hasattr(other, "get_vocab"):
            check_tokenizers(tokenizer, other, f"{where} ({given})" if isinstance(given, str | Path) else where)


def folder_of(teacher: Any) -> Path | None:
    """Return where a teacher was loaded from, if that is a folder of this machine."""
    if isinstance(teacher, Teacher):  # with a tokenizer of its own, that one is compared
        teacher = teacher.model if teacher.tokenizer is None else None
    if isinstance(teacher, str):
        return Path(teacher) if Path(teacher).is_dir() else None
    model = teacher.model if isinstance(teacher, Teacher) else teacher
    path = model.path if isinstance(model, ModelSource) else getattr(model, "name_or_path", model)
    return Path(path) if isinstance(path, str) and path and Path(path).is_dir() else None


# ---- answers --------------------------------------------------------------------------------------------------------


def try_teacher(trainer: Any, dataset: Any, teacher: Any, where: str) -> str | None:
    """Run a live teacher on some of a stage's rows, and return what is wrong with its answers; None if nothing is."""
    try:
        with preserve_random_state(), torch.no_grad(), trainer.accelerator.autocast():
            kind, found = _answers(trainer, dataset, teacher)
    except Exception as error:  # rows that only this stage's model takes, a model that gives no logits: not judged here
        logger.info(f"{where}: the teacher was not probed ({error})")
        return None
    if kind == "rows":
        return wrong_order(found)
    return wrong_tokens(*found) if kind is not None else None


def _answers(trainer: Any, dataset: Any, teacher: Any) -> tuple[str | None, Any]:
    outputs = outputs_of(teacher.model, "teacher")
    masked = outputs.kind == "tokens" and outputs.source != "config.num_labels"
    if outputs.kind == "rows" and 2 <= (outputs.classes or 0) <= _CLASSES:
        counts = torch.zeros(outputs.classes, outputs.classes, dtype=torch.long)
        for batch in _batches(trainer, dataset):
            labels = batch.get("labels")
            if not torch.is_tensor(labels) or labels.is_floating_point() or labels.dim() != 1:
                return None, None
            predicted = teacher(batch).final.float().argmax(-1).cpu()
            for pair in zip(predicted.tolist(), labels.tolist(), strict=True):
                counts[pair] += 1
        return "rows", counts.tolist()
    if outputs.kind == "next" or masked:
        return "tokens", _cross_entropy(trainer, dataset, teacher, shift=outputs.kind == "next", pad=outputs.pad)
    return None, None


def _cross_entropy(trainer: Any, dataset: Any, teacher: Any, *, shift: bool, pad: int | None) -> tuple[float, int, int]:
    """Return the teacher's mean cross-entropy on text (or on what is masked), the tokens it ran over, its classes."""
    total, tokens, classes = 0.0, 0, 0
    for batch in _batches(trainer, dataset):
        targets = batch["input_ids"] if shift else batch["labels"]
        real = batch["attention_mask"].ne(0) if "attention_mask" in batch and shift else targets.ge(0)
        if shift:
            real = real & targets.ne(pad) if pad is not None else real
            targets, real = targets[:, 1:], real[:, 1:] & real[:, :-1]
        places = real.nonzero()[: _TOKENS - tokens]
        final = teacher(batch).final
        states = final.hidden if isinstance(final, Head) else final
        chosen = states[places[:, 0], places[:, 1]]
        logits = (final.module(chosen) if isinstance(final, Head) else chosen).float()
        wanted = targets[places[:, 0], places[:, 1]].to(logits.device)
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        tokens, classes = tokens + len(places), logits.shape[-1]
        if tokens >= _TOKENS:
            break
    return total / max(tokens, 1), tokens, classes


def _batches(trainer: Any, dataset: Any) -> Any:
    """Yield batches of rows spread over the data, collated as in training; the same on every rank and in every run."""
    collator = trainer.data_collator
    by_source = SOURCE in columns_read(collator)
    if isinstance(collator, SourceCollator):
        collator = replace(collator, drawn=())  # nothing is drawn here
    if hasattr(dataset, "__len__"):
        count = min(_ROWS, len(dataset))
        rows = [_row(dataset, i * len(dataset) // count, by_source) for i in range(count)]
    else:
        rows = list(dataset.take(_ROWS)) if hasattr(dataset, "take") else []
    collate = trainer._get_collator_with_removed_columns(collator)
    size = min(_BATCH, trainer.args.per_device_train_batch_size)
    for start in range(0, len(rows), size):
        yield trainer._staged_batch_of(trainer._prepare_inputs(collate(rows[start : start + size]))).columns


def _row(dataset: Any, place: int, by_source: bool) -> Any:
    """Return a row; of a mixture with its source's name, where the collator goes by it."""
    if not by_source or not isinstance(dataset, SizedBlend):
        return dataset[place]
    name, row = dataset.named_row(place)
    return {**row, SOURCE: name}


# ---- verdicts -------------------------------------------------------------------------------------------------------


def wrong_order(counts: Sequence[Sequence[int]]) -> str | None:
    """Return what to do where a teacher is right about the data under other numbers; None where nothing is wrong.

    ``counts[predicted][label]`` are rows.

    Agreement is measured beyond chance (Cohen's kappa): a teacher that says one class always, as untrained ones do, has
    none under any order. It must be at least 0.4 and 4.5 / sqrt(rows), and right on a quarter of the rows more than as
    the numbers stand. None of 210,000 random teachers (2 to 16 classes, 32 to 128 rows, balanced or not) was refused.
    Among teachers that know 60 % of the rows, 85 % and more of those in another order were, and none in the right one.

    >>> wrong_order([[0, 0, 40], [0, 40, 0], [40, 0, 0]]).partition("; ")[0]
    "the teacher's class 0 seems to be the data's class 2, its class 2 the data's class 0"
    >>> wrong_order([[40, 40, 40], [0, 0, 0], [0, 0, 0]])
    """
    rows, classes = sum(map(sum, counts)), len(counts)
    labels = [sum(row[k] for row in counts) for k in range(classes)]
    if rows == 0 or sorted(labels)[-2] < 8:  # one class alone, or nearly
        return None
    order = _best_order(counts)
    right, chance = (
        sum(counts[k][order[k]] for k in range(classes)) / rows,
        sum(sum(counts[k]) * labels[order[k]] for k in range(classes)) / rows**2,
    )
    right_now = sum(counts[k][k] for k in range(classes)) / rows
    kappa = (right - chance) / (1 - chance) if chance < 1 else 0.0
    if kappa < max(0.4, 4.5 / math.sqrt(rows)) or right - right_now < 0.25:
        return None
    moved = [k for k in range(classes) if order[k] != k and counts[k][order[k]]]
    first, *rest = moved
    texts = [f"the teacher's class {first} seems to be the data's class {order[first]}"]
    texts += [f"its class {k} the data's class {order[k]}" for k in rest[:3]]
    return f"{', '.join(texts)}; number the data's labels as the teacher does"


def _best_order(counts: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return which label each class stands for. The largest counts are matched first.

    Where a teacher knows its classes, this is the best match.
    """
    cells = sorted(
        ((n, predicted == k, predicted, k) for predicted, row in enumerate(counts) for k, n in enumerate(row)),
        reverse=True,
    )
    order: dict[int, int] = {}
    for _, _, predicted, label in cells:
        if predicted not in order and label not in order.values():
            order[predicted] = label
    return order


def wrong_tokens(cross_entropy: float, tokens: int, classes: int) -> str | None:
    """Return what is wrong with a teacher that is worse than a uniform guess by a nat and more; None where it is not.

    >>> [wrong_tokens(*found) is None for found in ((12.0, 2048, 32000), (10.4, 2048, 32000), (99.0, 10, 32000))]
    [False, True, True]
    """
    if tokens < 64 or classes < 2 or not cross_entropy > math.log(classes) + 1.0:
        return None
    return (
        f"the teacher reads other tokens: its cross-entropy is {cross_entropy:.1f}, and guessing at random would have "
        f"{math.log(classes):.1f}; take a teacher with the student's tokenizer"
    )
