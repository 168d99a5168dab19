"""Goes the long way to one bit: general distillation, two bits, splitting, one bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_stages.core.duration import Duration
from hf_stages.core.stage import Recipe
from hf_stages.losses.base import Loss
from hf_stages.recipes.ready._parts import logit_losses, split_duration
from hf_stages.recipes.ready._quantized import (
    WITHOUT_EVALUATION,
    build_stage,
    compression_losses,
    head_transforms,
    one_rate_per_stage,
    shrink_transforms,
)


def multi_stage(
    until: str | Duration | Sequence[str] = "8 epochs",
    *,
    general: str | Duration | None = None,
    corpus: Any = None,
    general_teacher: Any = None,
    set_task: Any = None,
    reduce: Sequence[int] | None = None,
    width: float | None = None,
    method: str = "twn",
    per: str | int = "row",
    activations: int | None = 8,
    embeddings: bool | None = None,
    layers: str | Sequence[int] | Mapping[int, int] | None = None,
    stack: str | None = None,
    hidden: float | str | Loss = 1.0,
    attention: float | str | Loss = 1.0,
    logits: float | str | Loss = 1.0,
    task: float | str | Loss = 0.0,
    keep_features: bool = False,
    learning_rate: float | Sequence[float] | None = None,
) -> Recipe:
    """Train one-bit weights in several stages: general distillation, then 2-bit weights, which are split into 1-bit
    weights.

    ``general`` is how long the student first learns hidden states and attention of ``general_teacher`` on ``corpus``
    (TinyBERT). Without it, the run begins with the task. ``reduce`` (layers kept) and ``width`` (0.5: half the heads
    and feed-forward, so that the split model has as many bits as a binary one of full width) make the student smaller
    first; ``set_task`` gives it a head: the labels, say. Then four stages of distillation from the run's teacher, to
    which ``until`` and ``learning_rate`` refer (one for all, or one for each): features and logits of the ternary
    model, ``SplitTernary``, features and logits of the binary one (BinaryBERT; it gives 1e-5 to ternary and 5e-5 to
    binary stages, and 2.5 times as much where features are learned).

    ``keep_features`` keeps the features where logits are learned: on a small task logits alone overfit.
    ``method``, ``per``, ``activations`` and ``embeddings`` are ``Ternarize``'s; the other arguments are those of all
    ready recipes: see ``hf_stages.recipes``.
    """
    from hf_stages.transforms.split_ternary import SplitTernary
    from hf_stages.transforms.ternarize import Ternarize

    shapes = compression_losses(hidden, attention, layers, reduce, width, stack)
    answers = [*(shapes if keep_features else ()), *logit_losses(logits, task)]
    smaller_first, head = shrink_transforms(reduce, width, stack), head_transforms(set_task)
    stages = []
    if general is not None:
        if corpus is None or general_teacher is None:
            raise ValueError(
                "general: expected corpus= (what to learn from) and general_teacher= (whose hidden states) beside it"
            )
        given = {"train_dataset": corpus, "teacher": general_teacher, **WITHOUT_EVALUATION}
        stages.append(build_stage("general", general, shapes, None, smaller_first, **given))
        smaller_first = []
    elif corpus is not None or general_teacher is not None:
        raise ValueError("corpus, general_teacher: expected general= beside them, such as general='3 epochs'")
    ternary = Ternarize(method=method, per=per, activations=activations, embeddings=embeddings)
    pieces, rates = split_duration(until, 4), one_rate_per_stage(learning_rate, 4)
    stages += [
        build_stage("ternary-features", pieces[0], shapes, rates[0], [*smaller_first, *head, ternary]),
        build_stage("ternary-logits", pieces[1], answers, rates[1]),
        build_stage("binary-features", pieces[2], shapes, rates[2], [SplitTernary()]),
        build_stage("binary-logits", pieces[3], answers, rates[3]),
    ]
    return Recipe(stages)
