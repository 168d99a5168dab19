"""Each stage's model in shape alone: transforms run on the meta device, where weights take no memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hf_stages.core.curves import as_curve
from hf_stages.core.errors import NeedsWeights
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.random_depth import draw_depths
from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.stage import Recipe, Stage, parents_of
from hf_stages.layers.bits import stored_bits_of, stored_size_or_none
from hf_stages.layers.recurrent import find_recurrence
from hf_stages.layers.storage import StoredSize
from hf_stages.models.meta_device import report_missing_weights

_ADAM_BYTES = 8  # two fp32 moments


@dataclass(frozen=True)
class LoopCost:
    """FLOPs per token of a recurrent core's cycles beyond the first."""

    training: float = 0.0
    """In training, on average over the depths that are drawn in the stage."""
    forward: float = 0.0
    """Of a forward pass at the depth of evaluation."""


@dataclass(frozen=True)
class StageShape:
    """The size of a stage's model. Tied weights count once."""

    params: int
    trainable: int
    """Parameters that the stage trains."""
    non_embedding: int
    """Parameters that are multiplied with: all but tables that are only looked up. A tied head counts."""
    bytes: int
    """The size of a checkpoint: weights in their dtype, and two fp32 moments for each trainable one.

    Of quantized layers it holds latent and effective weights."""
    stored: StoredSize | None = field(default=None, repr=False)
    """The size when packed, by part; None where another library has packed weights."""
    loops: LoopCost = field(default=LoopCost(), repr=False)
    """What cycles of a recurrent core add to what the parameters cost once."""


def stage_shapes(recipe: Recipe, skeleton: nn.Module) -> dict[str, StageShape]:
    """Apply each stage's transforms to a copy of its parent's skeleton, and count what comes out.

    An error of a transform names the stage and the transform.

    ``skeleton`` lies on the meta device and is left as it is. A stage is left out where a transform computes with
    values, which a skeleton does not have; so are the stages that start from it.

    >>> stage_shapes(Recipe([Stage("a", "1 steps")]), nn.Linear(4, 2, device="meta"))["a"]
    StageShape(params=10, trainable=10, non_embedding=10, bytes=120)
    """
    models = build_skeletons(recipe, skeleton)
    return {name: replace(shape_of(model), loops=_loop_cost(model, recipe[name])) for name, model in models.items()}


def build_skeletons(recipe: Recipe, skeleton: nn.Module) -> dict[str, Any]:
    """Return each stage's model on the meta device, its transforms applied."""
    parents = parents_of(recipe.stages)
    models: dict[str, Any] = {}
    for stage in recipe.stages:
        parent = parents[stage.name]
        if parent is not None and parent not in models:
            continue
        model = _transformed(copy.deepcopy(models[parent] if parent is not None else skeleton), stage)
        if model is not None:
            models[stage.name] = model
    return models


def shape_of(model: nn.Module) -> StageShape:
    """Count a model's parameters, on any device."""
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    looked_up: set[int] = set()
    multiplied: set[int] = set()
    for module in model.modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        (looked_up if isinstance(module, nn.Embedding) else multiplied).update(own)
    trainable = sum(p.numel() for p in trained)
    return StageShape(
        params=sum(p.numel() for p in parameters),
        trainable=trainable,
        non_embedding=sum(p.numel() for p in parameters if id(p) not in looked_up - multiplied),
        bytes=sum(p.numel() * p.element_size() for p in parameters) + _effective_bytes(model) + _ADAM_BYTES * trainable,
        stored=stored_size_or_none(model),
    )


def _loop_cost(model: nn.Module, stage: Stage) -> LoopCost:
    """Count the cycles of a recurrent core: gradients flow through the last ``backprop`` of them."""
    core = find_recurrence(model)
    if core is None:
        return LoopCost()
    declared = [found for t in stage.transforms if (found := getattr(t, "mean_depth", None)) is not None]
    mean = as_curve(declared[-1] if declared else core.mean_depth)
    generator = torch.Generator().manual_seed(0)
    depths = torch.cat([draw_depths(mean((i + 0.5) / 16), 1024, generator=generator) for i in range(16)]).double()
    trained = depths.clamp(max=core.backprop).mean().item()
    untrained = depths.mean().item() - trained
    weights = sum(p.numel() for p in core.parameters())
    trainable = sum(p.numel() for p in core.parameters() if p.requires_grad)
    through = 4 * weights + 2 * trainable
    return LoopCost((trained - 1) * through + untrained * 2 * weights, 2 * weights * (core.depth - 1))


def _effective_bytes(model: nn.Module) -> int:
    """Count what quantized layers store beside their latent weights: each layer for itself, tied or not."""
    return sum(
        stored.weights * getattr(module, stored.names[0]).element_size()
        for module in model.modules()
        for stored in stored_bits_of(module)
    )


def _transformed(model: Any, stage: Stage) -> Any:
    for index, transform in enumerate(stage.transforms):
        label = type(transform).__name__
        place = place_errors(
            f"stage {stage.name!r}: transforms[{index}] {label}",
            *(ValueError, TypeError, ImportError, AttributeError, KeyError),
            drop=f"{label}: ",
            keep=(ImportError,),
        )
        try:
            with place, preserve_random_state(), report_missing_weights():
                model = transform(model)
        except NeedsWeights:
            return None
    return model
