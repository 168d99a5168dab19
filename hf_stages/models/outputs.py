"""What a model's logits stand for, and whether those of two models stand for the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_ROWS = ("ForSequenceClassification", "ForImageClassification", "ForVideoClassification", "ForAudioClassification")
_LANGUAGE = ("ForCausalLM", "ForConditionalGeneration")
_UNSHIFTED = ("XLMWithLMHeadModel", "XLNetLMHeadModel", "FlaubertWithLMHeadModel")
"""Classes in that mapping whose labels are not moved by one."""
_KIND_WORDS = {
    "rows": "one output per row",
    "tokens": "one per token, for that token",
    "next": "one per token, for the next token",
    "decoder": "one per token of its decoder",
}


@dataclass(frozen=True)
class Outputs:
    """What the logits of a model are, read from its class and config. The model may be on the meta device."""

    model: str
    """The model's class."""
    kind: str | None
    """What they are given for: ``rows``, ``tokens``, ``next`` (token) or ``decoder``; None where it is not known."""
    classes: int | None
    """How many there are."""
    source: str
    """Where ``classes`` was read, for error messages."""
    labels: tuple[str, ...] | None = None
    """Names of the classes; None where they are tokens or have default names."""
    problem_type: str | None = None
    """The config's ``problem_type``."""
    pad: int | None = None
    """The id of the padding token."""

    @property
    def meaning(self) -> str:
        """The kind in words."""
        return _KIND_WORDS.get(self.kind or "", "outputs of an unknown kind")


def outputs_of(model: Any, where: str) -> Outputs:
    """Find out what a model's logits are; ``where`` begins the message of an error."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    config: Any = getattr(base, "config", None)
    kind, language = _kind(base, config, where)
    problem = getattr(config, "problem_type", None)
    pad = getattr(config, "pad_token_id", None)
    known: dict[str, Any] = {"model": type(base).__name__, "kind": kind, "problem_type": problem, "pad": pad}
    if not language:
        classes = getattr(config, "num_labels", None)
        return Outputs(**known, classes=classes, source="config.num_labels", labels=_names(config))
    rows = _vocabulary(base)
    if rows is not None:
        return Outputs(**known, classes=rows, source="rows of the output embedding")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return Outputs(**known, classes=getattr(text, "vocab_size", None), source="config.vocab_size")


def check_same(student: Outputs, teacher: Outputs, where: str) -> None:
    """Refuse two models whose logits cannot be compared class by class."""
    if None not in (student.kind, teacher.kind) and student.kind != teacher.kind:
        raise ValueError(
            f"{where}: the student ({student.model}) gives {student.meaning}, the teacher ({teacher.model}) "
            f"{teacher.meaning}; expected two models of one task"
        )
    if None not in (student.classes, teacher.classes) and student.classes != teacher.classes:
        mend = (
            "train a teacher for the same classes, or give the student its head with SetTask(num_labels=...)"
            if student.source == "config.num_labels"
            else "ResizeVocab makes them equal where the tokenizer is the same and only padding rows differ"
        )
        raise ValueError(
            f"{where}: the student ({student.model}) has {student.classes} outputs ({student.source}), the teacher "
            f"({teacher.model}) {teacher.classes} ({teacher.source}); expected the same number; {mend}"
        )
    problems = (student.problem_type, teacher.problem_type)
    if None not in problems and problems[0] != problems[1]:
        raise ValueError(
            f"{where}: config.problem_type is {problems[0]!r} for the student and {problems[1]!r} for the teacher; "
            "expected the same"
        )
    _check_names(student, teacher, where)


def _check_names(student: Outputs, teacher: Outputs, where: str) -> None:
    if student.labels is None or teacher.labels is None:
        return
    mine, theirs = ([name.strip().casefold() for name in side.labels or ()] for side in (student, teacher))
    if mine == theirs:
        return
    at = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    apart = f"class {at} is {student.labels[at]!r} for the student and {teacher.labels[at]!r} for the teacher"
    if sorted(mine) == sorted(theirs):
        raise ValueError(
            f"{where}: the same labels in another order: {apart} (config.id2label). Number the data's labels as the "
            f"teacher does and give the student a head in that order: SetTask(..., id2label={list(teacher.labels)})"
        )
    raise ValueError(
        f"{where}: the models name different classes: {apart} (config.id2label); expected one task. If they mean the "
        "same, set id2label alike in both configs"
    )


def _kind(base: Any, config: Any, where: str) -> tuple[str | None, bool]:
    """Return the kind of the logits, and whether they are for the tokens of a vocabulary."""
    task, names = getattr(base, "loss_type", None), {cls.__name__ for cls in type(base).__mro__}
    decoder = bool(getattr(config, "is_encoder_decoder", False))
    if task in _ROWS:
        return "rows", False
    if task == "ForTokenClassification":
        return "tokens", False
    if task == "ForMaskedLM":
        return "tokens", True
    if task in _LANGUAGE or names & causal_model_names():
        return "decoder" if decoder else "next", True
    if task is not None:
        raise ValueError(
            f"{where}: {type(base).__name__} has no logits over classes per row or per token; expected a model for "
            "classification or language modeling"
        )
    if _vocabulary(base) is not None:
        return "decoder" if decoder else "tokens", True
    return None, False


def causal_model_names() -> set[str]:
    """Return the classes whose labels are moved by one. Some, such as GPT2LMHeadModel, have no ``loss_type`` for it."""
    found: set[str] = set()
    for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        found.update([value] if isinstance(value, str) else value)
    return found - set(_UNSHIFTED)


def _vocabulary(base: Any) -> int | None:
    """Count the rows of the output embedding, the real number of logits; None where there is no such head."""
    try:
        head = base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    weight = getattr(head, "weight", None)
    return None if weight is None else int(weight.shape[0])


def _names(config: Any) -> tuple[str, ...] | None:
    mapping = getattr(config, "id2label", None)
    if not mapping:
        return None
    names = tuple(str(name) for _, name in sorted(mapping.items(), key=lambda item: int(item[0])))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
