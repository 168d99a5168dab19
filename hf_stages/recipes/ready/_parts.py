"""Makes the losses, durations and stages of the ready recipes of distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_stages.core.curves import Const, as_curve
from hf_stages.core.duration import Duration
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage import Recipe, Stage
from hf_stages.losses.attention_mse import AttentionMSE
from hf_stages.losses.base import Loss
from hf_stages.losses.hidden_mse import HiddenMSE
from hf_stages.losses.logit_kl import LogitKL
from hf_stages.losses.task_loss import TaskLoss


def layer_maps(layers: Any, reduce: Sequence[int] | None) -> tuple[Any, Any]:
    """Return the layer maps of hidden states and of attention, which has no layer 0.

    >>> layer_maps(None, [2, 4, 6]), layer_maps({0: 0, 2: 6}, None)
    (({0: 0, 1: 2, 2: 4, 3: 6}, {1: 2, 2: 4, 3: 6}), ({0: 0, 2: 6}, {2: 6}))
    """
    if layers is None:
        layers = "uniform" if reduce is None else {0: 0, **dict(enumerate(reduce, start=1))}
    if not isinstance(layers, Mapping):
        layers = layers if isinstance(layers, str) else list(layers)
        return layers, layers
    return dict(layers), {s: t for s, t in layers.items() if s != 0 and t != 0}


def feature_losses(
    hidden: Any, attention: Any, layers: Any, reduce: Any, *, stack: str | None = None, scores: Any = AttentionMSE
) -> list[Loss]:
    of_hidden, of_attention = layer_maps(layers, reduce)
    return [
        *weighted_loss("hidden", hidden, lambda: HiddenMSE(layers=of_hidden, stack=stack)),
        *weighted_loss("attention", attention, lambda: scores(layers=of_attention, stack=stack)),
    ]


def logit_losses(logits: Any, task: Any, temperature: float = 1.0) -> list[Loss]:
    return [
        *weighted_loss("logits", logits, lambda: LogitKL(temperature=temperature)),
        *weighted_loss("task", task, TaskLoss),
    ]


def weighted_loss(name: str, given: Any, default: Any) -> list[Loss]:
    """Return the given loss, or the default loss times the given weight. A weight of zero gives no loss."""
    if isinstance(given, Loss):
        return [given]
    try:
        if given is None or isinstance(given, bool):
            raise ValueError
        weight = as_curve(given)
    except (ValueError, TypeError):
        raise ValueError(
            f"{name}: expected a weight (0 leaves the part out), a curve or a loss, got {given!r}"
        ) from None
    if isinstance(weight, Const):
        return [] if weight.value == 0 else [default() if weight.value == 1 else weight.value * default()]
    return [weight * default()]


def split_duration(until: Any, parts: int) -> list[Duration]:
    """Split a run's length into this many whole durations; the first ones take what is left over.

    >>> [str(piece) for piece in split_duration("100 steps", 3)]
    ['34 steps', '33 steps', '33 steps']
    """
    if isinstance(until, list | tuple):
        if len(until) != parts:
            raise ValueError(f"until: expected one duration, or one for each of {parts} stages, got {len(until)}")
        return [_parse_duration(one) for one in until]
    whole = _parse_duration(until)
    if parts == 1:
        return [whole]
    amount = int(whole.amount)
    # A third of an epoch is rounded up to whole updates, three times: only whole epochs add up for any data.
    if amount != whole.amount or amount < parts:
        raise ValueError(
            f"until: {str(whole)!r} does not split into {parts} whole numbers of {whole.unit}; give steps, more of "
            f"them, or one duration for each stage: until={[str(whole)] * parts}"
        )
    return [Duration(amount // parts + (i < amount % parts), whole.unit) for i in range(parts)]


def _parse_duration(until: Any) -> Duration:
    with place_errors("until"):
        return Duration.parse(until)


def build_recipe(stages: Mapping[str, Sequence[Loss]], *, until: Any, learning_rate: Any, reduce: Any) -> Recipe:
    """Make one stage for each name; its losses are added."""
    for name, losses in stages.items():
        if not losses:
            raise ValueError(f"stage {name!r}: every part of its loss has weight 0, so nothing would be learned")
    rates = list(learning_rate) if isinstance(learning_rate, list | tuple) else [learning_rate] * len(stages)
    if len(rates) != len(stages):
        raise ValueError(f"learning_rate: expected one, or one for each of {len(stages)} stages, got {len(rates)}")
    made = []
    for index, ((name, losses), piece) in enumerate(
        zip(stages.items(), split_duration(until, len(stages)), strict=True)
    ):
        loss = losses[0]
        for more in losses[1:]:
            loss = loss + more
        args = {} if rates[index] is None else {"learning_rate": rates[index]}
        transforms = _reduce_layers(reduce) if index == 0 else ()
        made.append(Stage(name, piece, loss=loss, transforms=transforms, args=args))
    return Recipe(made)


def _reduce_layers(reduce: Sequence[int] | None) -> tuple[Any, ...]:
    if reduce is None:
        return ()
    from hf_stages.transforms.reduce_layers import ReduceLayers

    return (ReduceLayers(list(reduce)),)
