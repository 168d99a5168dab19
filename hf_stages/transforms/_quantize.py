"""What Ternarize and Binarize share: which modules they mean, and putting quantized layers in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_stages.curves import Const, Curve, as_curve
from hf_stages.layers import Activations, Quantizer
from hf_stages.layers._quantized import LATENT, Quantized
from hf_stages.layers.quantizable import holders_of, kind_of, word_embeddings_of
from hf_stages.transforms._parameters import as_names
from hf_stages.transforms._patterns import match_names
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._transform import Transform


@dataclass(frozen=True)
class Quantize(Transform):
    """Base of Ternarize and Binarize."""

    modules: str | Sequence[str] | None = None
    """Names or patterns of modules. None: all linear layers of the base model (no head) and its word embeddings."""
    method: str = field(default="", kw_only=True)
    per: str | int = field(default="row", kw_only=True)
    activations: int | None = field(default=8, kw_only=True)
    symmetric: bool = field(default=True, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)
    embeddings: bool | None = field(default=None, kw_only=True)
    exclude: str | Sequence[str] = field(default=(), kw_only=True)
    strength: float | Curve = field(default=1.0, kw_only=True)

    levels = ""
    layers = (nn.Module, nn.Module)
    """Classes of linear layers and of embeddings."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.modules is not None:
            object.__setattr__(self, "modules", as_names(self.modules, where=f"{name}: modules"))
        if self.exclude != ():
            object.__setattr__(self, "exclude", as_names(self.exclude, where=f"{name}: exclude"))
        try:
            strength = as_curve(self.strength)
            object.__setattr__(self, "strength", strength.value if isinstance(strength, Const) else strength)
            Quantizer(self.levels, self.method, self.per)
            self._activations()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from None
        if not all(0 <= strength(t) <= 1 for t in (0.0, 0.5, 1.0)):
            raise ValueError(f"{name}: strength: expected values from 0 to 1, got {self.strength!r}")

    def __call__(self, model: Any) -> Any:
        name = type(self).__name__
        refuse_adapters(model, where=name)
        _refuse_quantized(model, name)
        chosen = self._chosen(model)
        quantizer, activations = Quantizer(self.levels, self.method, self.per), self._activations()
        made: dict[int, nn.Module] = {}
        scales: dict[int, list[Any]] = {}
        for path, module in chosen.items():
            try:
                made[id(module)] = self._made(module, quantizer, activations, scales)
            except ValueError as error:
                raise ValueError(f"{name}: {path}: {error}") from None
        for parent, key in holders_of(model, made):
            setattr(parent, key, made[id(getattr(parent, key))])
        self.at(model, 1.0)
        return model

    def at(self, model: Any, t: float) -> None:
        """The strength at progress ``t``, in the layers that this transform made."""
        strength = as_curve(self.strength)(t)
        for module in model.modules():
            if isinstance(module, Quantized) and module.levels == self.levels and not module.split:
                module.set_strength(strength)

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """A weight's moments become its latent weight's."""
        known = set(after)
        moves = {}
        for name in before:
            latent = f"{name.removesuffix('weight')}{LATENT}" if name.endswith("weight") else name
            new = name if name in known else latent
            if new in known:
                moves[name] = [new]
        return moves

    def _activations(self) -> Activations | None:
        if self.activations is None:
            if self.clip is not None or not self.symmetric:
                raise ValueError("activations: expected 8 or 4 beside clip= or symmetric=, got None")
            return None
        return Activations(self.activations, self.symmetric, self.clip)

    def _made(self, module: Any, quantizer: Quantizer, activations: Any, scales: dict[int, list[Any]]) -> nn.Module:
        linear, embedding = self.layers
        latents = module.latents if isinstance(module, Quantized) else [module.weight]
        # Tied weights share learned scales as well.
        shared = scales.get(id(latents[0]), ())
        if isinstance(module, nn.Embedding):
            layer = embedding.of(module, quantizer, latents, shared)  # type: ignore[attr-defined]
        else:
            layer = linear.of(module, quantizer, activations, latents, shared)  # type: ignore[attr-defined]
        scales[id(latents[0])] = layer.scales
        return layer

    # ---- which modules ----------------------------------------------------------------------------------------------

    def _chosen(self, model: Any) -> dict[str, nn.Module]:
        found = {path: module for path, module in model.named_modules() if kind_of(module) is not None}
        name, kind = type(self).__name__, type(model).__name__
        if self.modules is not None:
            paths = match_names(self.modules, found, where=f"{name}: modules")
        else:
            paths = self._default(model, found)
        if self.exclude:
            out = set(match_names(self.exclude, found, where=f"{name}: exclude"))
            paths = [path for path in paths if path not in out]
        paths = self._untied(found, paths)
        if not paths:
            raise ValueError(f"{name}: {kind}: nothing left to quantize; name linear layers or embeddings in modules=")
        for path in paths:
            self._refuse_twice(path, found[path])
        return {path: found[path] for path in paths}

    def _default(self, model: Any, found: dict[str, nn.Module]) -> list[str]:
        base = model.base_model if isinstance(model, PreTrainedModel) else model
        inner = {id(module) for module in base.modules()}
        words = word_embeddings_of(model)
        wanted = self.embeddings is not False
        return [
            path
            for path, module in found.items()
            if (id(module) in words and wanted if isinstance(module, nn.Embedding) else id(module) in inner)
        ]

    def _untied(self, found: dict[str, nn.Module], paths: list[str]) -> list[str]:
        """A weight is quantized wherever it is used, or nowhere."""
        users: dict[int, list[str]] = {}
        for path, module in found.items():
            for weight in _weights(module):
                users.setdefault(id(weight), []).append(path)
        chosen = set(paths)
        kept = []
        for path in paths:
            left = sorted({user for w in _weights(found[path]) for user in users[id(w)]} - chosen)
            if not left:
                kept.append(path)
            elif self.modules is not None or self.embeddings:
                raise ValueError(
                    f"{type(self).__name__}: {path} shares its weight with {left[0]}, which is not to be quantized; name both "
                    "in modules=, or neither"
                )
        return kept

    def _refuse_twice(self, path: str, module: nn.Module) -> None:
        if not isinstance(module, Quantized):
            return
        name = type(self).__name__
        if module.levels == "binary" and self.levels == "ternary":
            raise ValueError(
                f"{name}: {path} is binary already; ternary comes before binary (Ternarize, train, SplitTernary)"
            )
        if module.levels == self.levels:
            raise ValueError(
                f"{name}: {path} is {self.levels} already; leave this transform out, or name other modules="
            )


def _weights(module: Any) -> list[Any]:
    return module.latents if isinstance(module, Quantized) else [module.weight]


def _refuse_quantized(model: Any, name: str) -> None:
    other = getattr(model, "hf_quantizer", None) or getattr(model, "is_quantized", False)
    foreign = next((m for m in model.modules() if type(m).__module__.startswith(("bitsandbytes", "torchao"))), None)
    if other or foreign is not None:
        by = type(foreign).__name__ if foreign is not None else type(getattr(model, "hf_quantizer", model)).__name__
        raise ValueError(
            f"{name}: expected full-precision weights to train, got a model that is quantized already ({by}); load it without "
            "quantization_config"
        )
