"""The base of all quantized layers: latent weights, the effective weight made of them, and how both are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from hf_stages.layers._straight_through import FakeQuantize
from hf_stages.layers.activations import Activations
from hf_stages.layers.quantizers import Quantizer
from hf_stages.layers.splitting import split_ternary
from hf_stages.layers.storage import StoredBits

LATENT, SCALE, CLIP = "weight_latent", "weight_scale", "activation_clip"


class WithStrength(nn.Module):
    """The strength of a quantized layer or of quantized experts: how far it is quantized, which a stage may raise."""

    levels: ClassVar[str]
    """``binary`` or ``ternary``."""
    split: ClassVar[bool] = False
    """True: there are two latent weights, whose quantized values are added up."""
    strength: torch.Tensor | None = None
    """None is full strength.

    It is no buffer: DDP would send it in every step, and fails where its last buffer is None.
    """
    strength_owner: Any = None
    """The transform that made the layer and sets its strength."""

    def set_strength(self, strength: float) -> None:
        """Set how far the layer is quantized, from 0 (the latent weight, or the sum of two) to 1 (quantized)."""
        if not -1e-6 <= strength <= 1 + 1e-6:  # curves have rounding errors
            raise ValueError(f"strength: expected a number from 0 (full precision) to 1 (quantized), got {strength!r}")
        strength = max(0.0, strength)
        if strength >= 1:
            self.strength = None
        elif self.strength is None:
            # A tensor, because torch.compile would compile again for each number.
            self.strength = torch.tensor(float(strength), device=next(self.parameters()).device)
        else:
            self.strength.fill_(float(strength))

    def _apply(self, *args: Any, **more: Any) -> Any:
        strength = None if self.strength is None or self.strength.is_meta else float(self.strength)
        super()._apply(*args, **more)
        if self.strength is not None:  # on the latents' device, and in float32 whatever their dtype is
            self.strength = None
            self.set_strength(0.0 if strength is None else strength)
        return self


class Quantized(WithStrength):
    """A layer whose ``weight`` is computed from full-precision latent weights, which training changes.

    Its ``state_dict`` holds the effective ``weight`` too, so that a program without quantized layers loads the same
    function. When it is loaded, the latents count; ``weight`` counts where there are none (a full-precision model).
    """

    transposed = False
    """True: the weight is stored as (inputs, outputs), as in GPT-2. Rows are outputs in any case."""
    quantizer: Quantizer
    activations: Activations | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            kind, names = type(self).__name__, " and ".join(self.latent_names)
            raise AttributeError(f"{kind}.weight is computed from {names}; write to {names} instead")
        super().__setattr__(name, value)

    def _take_over(
        self, quantizer: Quantizer, latents: Sequence[torch.Tensor], scales: Sequence[torch.Tensor] = ()
    ) -> None:
        """Register weights as latents.

        Those that are parameters already stay the same objects, for ties and optimizers.
        """
        self.quantizer = quantizer
        rows = [latent.t() if self.transposed else latent for latent in latents]
        quantizer.group_size(rows[0].shape)
        if quantizer.learned and not scales:
            scales = [quantizer.initial_scales(row) for row in rows]
        for name, tensor in zip(self.latent_names, latents, strict=True):
            self.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
        trained = self.latents[0].requires_grad
        for name, tensor in zip(self.scale_names, scales, strict=True):
            # Tied layers share the object, so that it is updated once. It is frozen with the weight that it scales.
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor.to(latents[0].dtype), requires_grad=trained)
            self.register_parameter(name, tensor)

    @property
    def latent_names(self) -> tuple[str, ...]:
        """Names of the latent weights: one, or two in a split layer."""
        return (f"{LATENT}_1", f"{LATENT}_2") if self.split else (LATENT,)

    @property
    def scale_names(self) -> tuple[str, ...]:
        """Names of the learned scales; none where scales are computed."""
        if not self.quantizer.learned:
            return ()
        return (f"{SCALE}_1", f"{SCALE}_2") if self.split else (SCALE,)

    @property
    def latents(self) -> list[torch.Tensor]:
        """The latent weights."""
        return [getattr(self, name) for name in self.latent_names]

    @property
    def scales(self) -> list[torch.Tensor]:
        """The learned scales."""
        return [getattr(self, name) for name in self.scale_names]

    @property
    def weight(self) -> torch.Tensor:
        """The effective weight. Its gradient passes straight through to the latents.

        It is computed whenever it is read. Writing into it in place has no effect; assigning to it is an error.
        """
        parts = (*self.latents, *self.scales)
        return FakeQuantize.apply(self.quantizer, self.strength, self.transposed, len(self.latents), *parts)

    def stored_bits(self) -> tuple[StoredBits, ...]:
        """Say what packing keeps of the latents and the scales."""
        rows, columns = self.latents[0].shape
        shape = (columns, rows) if self.transposed else (rows, columns)
        names = (*self.latent_names, *self.scale_names)
        return (StoredBits.from_quantizer(names, self.quantizer, shape, halves=len(self.latents)),)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # The weight comes first, as in the layer that this one replaced.
        shared = self._stored_by_tied_layer(destination) if self.tied else None
        with torch.no_grad():
            destination[f"{prefix}weight"] = self.weight.contiguous() if shared is None else shared
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        effective = state_dict.pop(f"{prefix}weight", None)
        latents = [f"{prefix}{name}" for name in self.latent_names]
        # A tied layer's latents may be stored under the other layer's name alone.
        if effective is not None and not self.tied and not any(name in state_dict for name in latents):
            state_dict.update(zip(latents, self._state_from_plain(effective, prefix, state_dict), strict=True))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def tied(self) -> bool:
        """Whether the latent weights are those of another layer. ``rename_ties`` notes it."""
        return getattr(self, "_tied_weights_keys", None) is not None

    def _stored_by_tied_layer(self, destination: Any) -> Any:
        """Return the effective weight that the tied layer has stored, so that files hold it once."""
        own, end = self.latents[0], self.latent_names[0]
        for name, tensor in destination.items():
            if name.endswith(f".{end}") and tensor.data_ptr() == own.data_ptr() != 0:
                return destination.get(f"{name.removesuffix(end)}weight")
        return None

    def _state_from_plain(self, weight: torch.Tensor, prefix: str, state_dict: Any) -> Sequence[torch.Tensor]:
        """Make latents of a full-precision weight.

        What else a full-precision model lacks is added to ``state_dict``.
        """
        if weight.shape != self.latents[0].shape:
            return [weight] * len(self.latents)  # torch then reports the shapes
        latents, scales = initial_latents(weight, self.quantizer, self.split, self.transposed)
        state_dict.update({f"{prefix}{name}": scale for name, scale in zip(self.scale_names, scales, strict=True)})
        clip = self._parameters.get(CLIP)
        if clip is not None:
            state_dict.setdefault(f"{prefix}{CLIP}", clip.detach())
        return latents

    def _restart_from(self, weight: torch.Tensor) -> None:
        """Set latents and scales to what training starts with for a full-precision weight."""
        latents, scales = initial_latents(weight, self.quantizer, self.split, self.transposed)
        with torch.no_grad():
            for old, new in zip((*self.latents, *self.scales), (*latents, *scales), strict=True):
                old.copy_(new)

    def _describe(self) -> str:
        text = f"levels={self.quantizer.levels}, method={self.quantizer.method}, per={self.quantizer.per}"
        if self.activations is not None:
            text += f", activations={self.activations.bits}bit"
            text += "" if self.activations.symmetric else ", asymmetric"
            text += "" if self.activations.clip is None else ", learned clip"
        return text


def initial_latents(
    weight: torch.Tensor, quantizer: Quantizer, split: bool, transposed: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the latents and learned scales with which training begins for a full-precision weight."""
    rows = weight.detach().t() if transposed else weight.detach()
    if not split:
        return [weight], [quantizer.initial_scales(rows)] if quantizer.learned else []
    # Two equal halves would stay equal, because they get the same gradient. So the weight is made ternary and split.
    ternary = Quantizer("ternary", "learned" if quantizer.learned else "twn", quantizer.per)
    return _split(rows, ternary, ternary.initial_scales(rows) if ternary.learned else None, transposed)


def _split(
    rows: torch.Tensor, ternary: Quantizer, scale: torch.Tensor | None, transposed: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the latents of both halves in the layer's own layout, and their scales where they must be stored."""
    first, second, half = split_ternary(rows, ternary, scale)
    latents = [part.t().contiguous() if transposed else part for part in (first, second)]
    return latents, [] if half is None else [half, half.clone()]


def latents_of(layer: Any) -> list[torch.Tensor]:
    """Return the latent weight for a layer that replaces ``layer``: its weight, or its latent weight if it has one."""
    if not isinstance(layer, Quantized):
        return [layer.weight]
    if layer.split:
        raise ValueError(f"expected a layer of one weight, got a {type(layer).__name__}, which has two")
    return layer.latents


def as_activations(given: Any) -> Activations | None:
    """Make ``Activations(bits=8)`` of 8; None leaves activations as they are."""
    if given is None or isinstance(given, Activations):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return Activations(bits=given)
    raise ValueError(f"activations: expected 8, 4, Activations(...) or None, got {given!r}")


def split_in_halves(layer: Quantized) -> tuple[Quantizer, list[torch.Tensor], list[torch.Tensor]]:
    """Split a ternary layer: return the halves' quantizer, latents and, where they must be stored, scales."""
    if layer.split or layer.levels != "ternary":
        raise ValueError(f"split: expected a ternary layer, got a {type(layer).__name__}")
    weight = layer.latents[0].detach()
    scale = layer.scales[0].detach() if layer.scales else None
    latents, scales = _split(weight.t() if layer.transposed else weight, layer.quantizer, scale, layer.transposed)
    binary = Quantizer("binary", "learned" if scales else "mean", layer.quantizer.per)
    trained = layer.latents[0].requires_grad
    return binary, [nn.Parameter(latent, requires_grad=trained) for latent in latents], scales


def is_range_parameter(name: str) -> bool:
    """Whether a parameter is a learned scale or a learned range of activations.

    >>> [is_range_parameter(f"experts.{name}") for name in ("weight_scale", "down_proj_scale_2", "weight_latent")]
    [True, True, False]
    """
    leaf = name.rpartition(".")[2].removesuffix("_1").removesuffix("_2")
    return leaf.endswith(("weight_scale", "proj_scale", "activation_clip"))
