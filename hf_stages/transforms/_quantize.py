"""What Ternarize and Binarize share: their arguments, and how quantized layers replace others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_stages.core.curves import Const, Curve, as_curve
from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.activations import Activations
from hf_stages.layers.experts import QuantizedExperts
from hf_stages.layers.quantizable import holders_of, kind_of, weights_of
from hf_stages.layers.quantized import WithStrength
from hf_stages.layers.quantizers import Quantizer
from hf_stages.layers.ties import rename_ties
from hf_stages.transforms._parameters import as_names
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._quantizable import choose_modules
from hf_stages.transforms.base import Transform

_LIBRARIES = (
    "bitsandbytes",
    "torchao",
    "auto_gptq",
    "gptqmodel",
    "awq",
    "hqq",
    "quanto",
    "optimum",
    "compressed_tensors",
)
_FULL = 1 - 1e-6
"""Curves that are to end at 1 may miss it by rounding."""


@dataclass(frozen=True)
class Quantize(Transform):
    """Base of Ternarize and Binarize."""

    modules: str | Sequence[str] | None = None
    """Names or patterns of modules. None: all linear layers and experts of the base model, and its word embeddings; not
    the head, not routers."""
    method: str = field(default="", kw_only=True)
    per: str | int = field(default="row", kw_only=True)
    """What shares a scale: ``"row"``, ``"tensor"``, or so many neighbours within a row, such as 64."""
    activations: int | None = field(default=8, kw_only=True)
    """Bits of what enters a linear layer: 8, 4, or None for full precision."""
    symmetric: bool = field(default=True, kw_only=True)
    """Whether levels of activations lie around zero."""
    clip: float | None = field(default=None, kw_only=True)
    """Where a learned range of activations begins; None: each token has its own."""
    embeddings: bool | None = field(default=None, kw_only=True)
    """None: word embeddings too, unless they share their weight with a layer left out. True: always. False: never."""
    exclude: str | Sequence[str] = field(default=(), kw_only=True)
    """Names or patterns of modules that stay as they are."""
    strength: float | Curve = field(default=1.0, kw_only=True)
    """From full precision (0) to quantized (1) over the stage; a curve has to end at 1."""

    levels = ""
    layers = (nn.Module, nn.Module)
    """Classes of linear layers and of embeddings."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.modules is not None:
            object.__setattr__(self, "modules", as_names(self.modules, where=f"{name}: modules"))
        exclude = as_names(self.exclude, where=f"{name}: exclude") if self.exclude else ()
        object.__setattr__(self, "exclude", exclude)
        if not isinstance(self.embeddings, bool | None):
            raise ValueError(f"{name}: embeddings: expected True, False or None, got {self.embeddings!r}")
        with place_errors(name, ValueError, TypeError):
            strength = as_curve(self.strength)
            object.__setattr__(self, "strength", strength.value if isinstance(strength, Const) else strength)
            Quantizer(self.levels, self.method, self.per)
            self._activations()
        if not all(0 <= strength(i / 16) <= 1 for i in range(17)):
            raise ValueError(f"{name}: strength: expected values from 0 to 1, got {self.strength!r}")
        if strength(1.0) < _FULL:
            raise ValueError(
                f"{name}: strength: expected 1 at the stage's end, so that the weights it leaves are {self.levels}, "
                f"got {strength(1.0):.3g} from {self.strength!r}; for example Linear(0, 1)"
            )

    def __call__(self, model: Any) -> Any:
        name = type(self).__name__
        refuse_adapters(model, where=name)
        self.check(model)
        chosen = choose_modules(self, model)
        self._release(model)
        quantizer, activations = Quantizer(self.levels, self.method, self.per), self._activations()
        made: dict[int, nn.Module] = {}
        scales: dict[int, list[Any]] = {}
        # Experts change in place, so they come last: an error before leaves the model as it was.
        for path, module in sorted(chosen.items(), key=lambda item: kind_of(item[1]) == "experts"):
            with place_errors(f"{name}: {path}"):
                made[id(module)] = self._quantized(module, quantizer, activations, scales)
        for parent, key in holders_of(model, made):
            setattr(parent, key, made[id(getattr(parent, key))])
        with place_errors(name):
            rename_ties(model)
        self.at(model, 1.0)
        return model

    def at(self, model: Any, t: float) -> None:
        """Set the strength at progress ``t`` in the layers that this transform made."""
        strength = as_curve(self.strength)(t)
        for module in model.modules():
            if isinstance(module, WithStrength) and module.strength_owner == self:
                module.set_strength(1.0 if strength >= _FULL else strength)

    def check(self, model: Any) -> None:
        """Refuse models that another library has quantized: their weights cannot be trained."""
        other = getattr(model, "hf_quantizer", None) or getattr(model, "is_quantized", False)
        other = other or getattr(getattr(model, "config", None), "quantization_config", None)
        foreign = next((m for m in model.modules() if type(m).__module__.startswith(_LIBRARIES)), None)
        if other or foreign is not None:
            by = type(foreign).__name__ if foreign is not None else type(other).__name__
            raise ValueError(
                f"{type(self).__name__}: expected full-precision weights to train, got a model that is quantized "
                f"already ({by}); load it without quantization_config"
            )

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """A weight's moments become its latent weight's."""
        known = set(after)
        news = {name: name if name in known else f"{name}_latent" for name in before}
        return {name: [new] for name, new in news.items() if new in known}

    def _activations(self) -> Activations | None:
        if self.activations is None:
            if self.clip is not None or not self.symmetric:
                raise ValueError("activations: expected 8 or 4 beside clip= or symmetric=, got None")
            return None
        return Activations(self.activations, self.symmetric, self.clip)

    def _quantized(
        self, module: Any, quantizer: Quantizer, activations: Any, scales: dict[int, list[Any]]
    ) -> nn.Module:
        weights = weights_of(module)
        odd = next((w for w in weights if not w.is_floating_point() or type(w).__module__.startswith(_LIBRARIES)), None)
        if odd is not None:
            raise ValueError(f"expected a full-precision weight, got {odd.dtype} ({type(odd).__name__})")
        if kind_of(module) == "experts":
            QuantizedExperts.quantize(module, self.levels, quantizer, activations)
            module.strength_owner = self
            return module
        linear, embedding = self.layers
        # Tied weights share learned scales as well.
        shared = scales.get(id(weights[0]), ())
        if isinstance(module, nn.Embedding):
            layer = embedding.from_layer(module, quantizer, weights, shared)
        else:
            layer = linear.from_layer(module, quantizer, activations, weights, shared)
            if layer.activation_clip is not None:
                layer.activation_clip.requires_grad_(weights[0].requires_grad)
        scales[id(weights[0])] = layer.scales
        layer.strength_owner = self
        return layer

    def _release(self, model: Any) -> None:
        """What an equal transform made in an earlier stage stays at full strength."""
        for module in model.modules():
            if isinstance(module, WithStrength) and module.strength_owner == self:
                module.strength_owner = None
