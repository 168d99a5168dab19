"""From two bits to twice one bit, without a change of function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.layers import SplitEmbedding, SplitLinear
from hf_stages.layers._quantized import LATENT, SCALE, Quantized
from hf_stages.layers.quantizable import holders_of
from hf_stages.transforms._parameters import as_names
from hf_stages.transforms._patterns import match_names
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._transform import Transform


@dataclass(frozen=True)
class SplitTernary(Transform):
    """Every ternary layer becomes two binary ones on the same input (BinaryBERT's ternary weight splitting).

    The halves' latent weights add up to the ternary one's, their binary weights to its ternary weight, so the function is
    kept. Both halves take the optimizer's moments along. What comes out is binary: no Binarize after it.

    >>> SplitTernary().moves(["a.weight_latent", "b"], ["a.weight_latent_1", "a.weight_latent_2", "b"])
    {'a.weight_latent': ['a.weight_latent_1', 'a.weight_latent_2'], 'b': ['b']}
    """

    modules: str | Sequence[str] | None = None
    """Names or patterns of modules; None: all that are ternary."""
    keeps_function = True

    def __post_init__(self) -> None:
        if self.modules is not None:
            object.__setattr__(self, "modules", as_names(self.modules, where="SplitTernary: modules"))

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="SplitTernary")
        ternary = {path: m for path, m in model.named_modules() if isinstance(m, Quantized) and m.levels == "ternary"}
        if not ternary:
            raise ValueError(
                f"SplitTernary: expected ternary layers, got a {type(model).__name__} with none; an earlier stage, or a "
                "transform before this one, must be Ternarize"
            )
        paths = list(ternary)
        if self.modules is not None:
            paths = match_names(self.modules, ternary, where="SplitTernary: modules")
        halves: dict[int, tuple[Any, list[Any], list[Any]]] = {}
        made: dict[int, nn.Module] = {}
        for path in paths:
            layer: Any = ternary[path]
            if layer.strength is not None:
                raise ValueError(
                    f"SplitTernary: {path}: expected quantization at full strength, got {float(layer.strength):.3g}; let the "
                    "curve of Ternarize(strength=...) end at 1"
                )
            made[id(layer)] = _split(layer, halves)
        for parent, key in holders_of(model, made):
            setattr(parent, key, made[id(getattr(parent, key))])
        return model

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """To both halves, unscaled."""
        known = set(after)
        moves = {}
        for name in before:
            halves = [f"{name}_1", f"{name}_2"] if name.rpartition(".")[2] in (LATENT, SCALE) else []
            new = [name] if name in known else [half for half in halves if half in known]
            if new:
                moves[name] = new
        return moves


def _split(layer: Any, halves: dict[int, Any]) -> nn.Module:
    """Layers that share a latent weight share its halves."""
    kind: Any = SplitEmbedding if isinstance(layer, nn.Embedding) else SplitLinear
    key = id(layer.latents[0])
    if key not in halves:
        made = kind.of_ternary(layer)
        halves[key] = (made.quantizer, made.latents, made.scales)
        return made
    quantizer, latents, scales = halves[key]
    if kind is SplitEmbedding:
        return kind.of(layer, quantizer, latents, scales)
    return kind.of(layer, quantizer, layer.activations, latents, scales)
