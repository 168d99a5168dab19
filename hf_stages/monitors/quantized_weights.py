"""How the weights of quantized layers move between their levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import LogSpaced, as_occasions
from hf_stages.layers.levels import levels_of, quantized_layers
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher

_ALMOST = 0.99


@dataclass(frozen=True)
class QuantizedWeights(Monitor):
    """Logs how many weights of quantized layers change their level in an update, and which layers have come to rest.

    ``sign_flips`` is the share of weights whose level changed in the update that is logged, ``zero_share`` the share of
    zeros among ternary weights. ``dead_layers`` counts layers of which more than 99 % of the weights have one level: of
    ternary ones zero. ``saturated_layers`` counts layers of which no weight changed its level. Levels are those at full
    strength.

    >>> QuantizedWeights().logs
    ('sign_flips', 'zero_share', 'dead_layers', 'saturated_layers')
    """

    every: Any = field(default_factory=LogSpaced)
    """On which updates: it takes part in the first training log after each of them."""

    logs: ClassVar[tuple[str, ...]] = ("sign_flips", "zero_share", "dead_layers", "saturated_layers")

    def __post_init__(self) -> None:
        as_occasions(self.every, "QuantizedWeights")

    def check(self, run: WatchedRun) -> None:
        if not quantized_layers(run.model):
            raise run.error(
                self,
                "the model has no quantized layers; leave it out, or put Ternarize() into transforms",
            )
        if run.sharded:
            raise run.error(self, "under FSDP each rank holds a part of every weight; leave it out, or use DDP")

    def watch(self, run: WatchedRun) -> Watcher:
        return _Levels(quantized_layers(run.model))


class _Levels(Watcher):
    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.ternary = torch.tensor([layer.levels == "ternary" for layer in layers])
        self.reset()

    def reset(self) -> None:
        self.before: list[torch.Tensor] | None = None
        self.counts: torch.Tensor | None = None
        """Of each layer: weights, changed ones, zeros, ones above zero."""

    def before_step(self) -> None:
        self.before = [levels_of(layer) for layer in self.layers]

    def after_step(self) -> None:
        assert self.before is not None
        counts = []
        for layer, before in zip(self.layers, self.before, strict=True):
            now = levels_of(layer)
            seen = [now.ne(before).sum(), now.eq(0).sum(), now.gt(0).sum()]
            counts.append(torch.stack([torch.full_like(seen[0], now.numel()), *seen]))
        self.before, self.counts = None, torch.stack(counts)

    def log(self, view: Mapping[str, Any]) -> Readings:
        if self.counts is None:
            return {}
        counts = self.counts.to(torch.float32 if self.counts.device.type == "mps" else torch.float64)
        weights, changed, zeros, above = counts.unbind(1)
        ternary = self.ternary.to(counts.device)
        one_level = torch.where(ternary, zeros, torch.maximum(above, weights - above)) > _ALMOST * weights
        seen: dict[str, torch.Tensor] = {
            "sign_flips": changed.sum() / weights.sum(),
            "dead_layers": one_level.sum(),
            "saturated_layers": changed.eq(0).sum(),
        }
        if any(layer.levels == "ternary" for layer in self.layers):
            seen["zero_share"] = (zeros * ternary).sum() / (weights * ternary).sum()
        self.reset()
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {"counts": None if self.counts is None else self.counts.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        if state["counts"] is not None and len(state["counts"]) == len(self.layers):
            self.counts = torch.tensor(state["counts"], device=next(self.layers[0].parameters()).device)
