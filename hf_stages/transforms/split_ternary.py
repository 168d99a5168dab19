"""From two bits to twice one bit, without a change of function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.core.stage_context import StageContext
from hf_stages.layers.experts import QuantizedExperts
from hf_stages.layers.quantizable import holders_of
from hf_stages.layers.quantized import WithStrength
from hf_stages.layers.split_embedding import SplitEmbedding
from hf_stages.layers.split_linear import SplitLinear
from hf_stages.layers.ties import rename_ties
from hf_stages.transforms._parameters import as_names
from hf_stages.transforms._patterns import match_names
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class SplitTernary(Transform):
    """Every ternary layer becomes two binary ones on the same input (BinaryBERT's ternary weight splitting).

    The latent weights of both halves add up to the ternary layer's, and their binary weights to its ternary weight, so
    the function is kept. Both halves get the optimizer's moments. The result is binary: no Binarize after it.

    >>> SplitTernary().moves(["a.weight_latent", "b"], ["a.weight_latent_1", "a.weight_latent_2", "b"])
    {'a.weight_latent': ['a.weight_latent_1', 'a.weight_latent_2'], 'b': ['b']}
    """

    modules: str | Sequence[str] | None = None
    """Names or patterns of modules; None: all that are ternary."""
    keeps_function = True

    def __post_init__(self) -> None:
        if self.modules is not None:
            object.__setattr__(self, "modules", as_names(self.modules, where="SplitTernary: modules"))

    def check_stage(self, context: StageContext) -> None:
        """Refuse to split what is ternary only at the stage's end: the split comes before its first step."""
        transforms = context.stage.transforms
        place = max(index for index, part in enumerate(transforms) if part is self)
        before = [part for part in transforms[:place] if part.varies]
        if before:
            raise ValueError(
                f"transforms: {type(before[0]).__name__} comes to full strength over the stage, but SplitTernary "
                "splits before its first step; let SplitTernary begin the next stage, or leave strength out"
            )

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="SplitTernary")
        chosen = self._chosen(model)
        halves: dict[int, tuple[Any, list[Any], list[Any]]] = {}
        made: dict[int, nn.Module] = {}
        for layer in chosen.values():
            if isinstance(layer, QuantizedExperts):
                QuantizedExperts.split_ternary(layer)
            else:
                made[id(layer)] = _split(layer, halves)
        for parent, key in holders_of(model, made):
            setattr(parent, key, made[id(getattr(parent, key))])
        rename_ties(model)
        return model

    def _chosen(self, model: Any) -> dict[str, Any]:
        ours = {path: m for path, m in model.named_modules() if isinstance(m, WithStrength)}
        ternary = {path: layer for path, layer in ours.items() if layer.levels == "ternary"}
        if not ternary:
            there = f"whose {len(ours)} quantized layers are binary" if ours else "without quantized layers"
            raise ValueError(
                f"SplitTernary: expected ternary layers, got a {type(model).__name__} {there}; an earlier stage, or a "
                "transform before this one, must be Ternarize"
            )
        paths = (
            list(ternary) if self.modules is None else match_names(self.modules, ternary, where="SplitTernary: modules")
        )
        users: dict[int, list[str]] = {}
        for path, layer in ternary.items():
            for parameter in layer.parameters(recurse=False):
                users.setdefault(id(parameter), []).append(path)
        chosen = set(paths)
        for path in paths:
            if left := [u for p in ternary[path].parameters(recurse=False) for u in users[id(p)] if u not in chosen]:
                raise ValueError(
                    f"SplitTernary: {path} shares its weight with {left[0]}; name both in modules=, or neither"
                )
        return {path: ternary[path] for path in paths}

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Moments go to both halves, unscaled."""
        known = set(after)
        moves = {name: [name] if name in known else [f"{name}_1", f"{name}_2"] for name in before}
        return {name: news for name, news in moves.items() if known.issuperset(news)}


def _split(layer: Any, halves: dict[int, Any]) -> nn.Module:
    """Split one layer. Layers that share a latent weight share its halves."""
    kind: Any = SplitEmbedding if isinstance(layer, nn.Embedding) else SplitLinear
    key = id(layer.latents[0])
    if key not in halves:
        made = kind.from_ternary(layer)
        halves[key] = (made.quantizer, made.latents, made.scales)
    else:
        quantizer, latents, scales = halves[key]
        of = (quantizer, latents, scales) if kind is SplitEmbedding else (quantizer, layer.activations, latents, scales)
        made = kind.from_layer(layer, *of)
    if getattr(layer, "activation_clip", None) is not None:
        made.activation_clip = layer.activation_clip  # where training has brought it
    return made
