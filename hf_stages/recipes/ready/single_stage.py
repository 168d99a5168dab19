"""Goes the short way to one bit: layers copied from the teacher, binary at once, one long stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_stages.core.curves import Curve
from hf_stages.core.duration import Duration
from hf_stages.core.stage import Recipe
from hf_stages.losses.base import Loss
from hf_stages.recipes.ready._parts import logit_losses, split_duration
from hf_stages.recipes.ready._quantized import build_stage, compression_losses, shrink_transforms


def single_stage(
    until: str | Duration = "18 epochs",
    *,
    reduce: Sequence[int] | None = None,
    bits: int = 1,
    method: str | None = None,
    per: str | int = "row",
    activations: int | None = 8,
    embeddings: bool | None = None,
    strength: float | str | Curve = 1.0,
    layers: str | Sequence[int] | Mapping[int, int] | None = None,
    stack: str | None = None,
    hidden: float | str | Loss = 1.0,
    attention: float | str | Loss = 1.0,
    logits: float | str | Loss = 1.0,
    task: float | str | Loss = 0.0,
    learning_rate: float | None = None,
) -> Recipe:
    """Train one-bit weights in one stage, with hidden states, attention and logits together from the first step (XTC).

    The student begins as its teacher, or as the layers of it that ``reduce`` keeps. XTC
    (https://arxiv.org/abs/2206.01859) found that one long stage replaces several: 18 epochs, 36 with fewer layers.
    ``bits=2`` stops at ternary weights. ``method``, ``per``, ``activations``, ``embeddings`` and ``strength`` are those
    of ``Binarize`` and ``Ternarize``; the other arguments are those of all ready recipes: see ``hf_stages.recipes``.
    """
    from hf_stages.transforms.binarize import Binarize
    from hf_stages.transforms.ternarize import Ternarize

    if bits not in (1, 2):
        raise ValueError(f"bits: expected 1 (binary) or 2 (ternary), got {bits!r}")
    kind = Binarize if bits == 1 else Ternarize
    chosen = {} if method is None else {"method": method}
    quantize = kind(per=per, activations=activations, embeddings=embeddings, strength=strength, **chosen)  # type: ignore[arg-type]
    losses = [*compression_losses(hidden, attention, layers, reduce, stack=stack), *logit_losses(logits, task)]
    name = "binary" if bits == 1 else "ternary"
    return Recipe(
        [
            build_stage(
                name,
                split_duration(until, 1)[0],
                losses,
                learning_rate,
                [*shrink_transforms(reduce, None, stack), quantize],
            )
        ]
    )
