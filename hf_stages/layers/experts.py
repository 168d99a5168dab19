"""Quantized experts of a mixture.

transformers keeps the matrices of all experts in one parameter of three dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from hf_stages.layers._straight_through import FakeQuantize, RoundActivations, effective_weight
from hf_stages.layers.activations import Activations
from hf_stages.layers.quantized import WithStrength
from hf_stages.layers.quantizers import Quantizer
from hf_stages.layers.splitting import split_ternary
from hf_stages.layers.storage import StoredBits

_STACKS = ("gate_up_proj", "up_proj", "down_proj")


class QuantizedExperts(WithStrength):
    """A mixin for a model's own class of experts, whose stacks of matrices are then computed from latent ones.

    ``gate_up_proj`` gives the effective stack, ``gate_up_proj_latent`` is trained, and a ``state_dict`` holds both.
    Weights that share a scale lie in one row of one expert's matrix.
    """

    plain: ClassVar[Any]
    """The model's own class."""
    stacks: ClassVar[tuple[str, ...]]
    """Names of the stacks: those that the input enters first, then the down projections."""
    transposed: bool
    """True: the matrices are stored as (inputs, outputs), as in GPT-OSS. Rows are outputs in any case."""
    quantizer: Quantizer
    activations: Activations | None
    _forward_cache: dict[str, torch.Tensor] | None
    """Effective stacks of the forward pass that runs."""

    @staticmethod
    def quantize(module: Any, levels: str, quantizer: Quantizer, activations: Activations | None = None) -> None:
        """Quantize a module in place, by changing its class: no reference to it has to be replaced."""
        names, transposed = layout_of(module)
        ours = isinstance(module, QuantizedExperts)
        plain: Any = module.plain if ours else type(module)
        if activations is not None and not hasattr(module, "_apply_gate"):
            raise ValueError(
                f"activations: a {plain.__name__} multiplies in a way that is not known, so that what enters its down "
                "projections cannot be rounded; give activations=None, or leave it out with exclude="
            )
        latents = {name: [getattr(module, f"{name}_latent") if ours else getattr(module, name)] for name in names}
        for name in names:
            quantizer.group_size(_as_rows(latents[name][0], transposed).shape)
        _change_class(module, _class_of(plain, levels, False, names), latents, {}, quantizer, transposed)
        _set_activations(module, activations)

    @staticmethod
    def split_ternary(module: Any) -> None:
        """Split each ternary stack into two binary ones with the same sum, in place."""
        if not isinstance(module, QuantizedExperts) or module.levels != "ternary":
            raise ValueError(f"split: expected ternary experts, got a {type(module).__name__}")
        latents, scales, learned = {}, {}, False
        for name in module.stacks:
            (latent,), own = module.latents_of(name), module.scales_of(name)
            rows = _as_rows(latent.detach(), module.transposed)
            first, second, half = split_ternary(rows, module.quantizer, own[0].detach() if own else None)
            trains = latent.requires_grad
            latents[name] = [nn.Parameter(_as_rows(h, module.transposed).contiguous(), trains) for h in (first, second)]
            if half is not None:
                learned, scales[name] = True, [nn.Parameter(half.clone(), trains) for _ in range(2)]
        quantizer = Quantizer("binary", "learned" if learned else "mean", module.quantizer.per)
        kind = _class_of(module.plain, "binary", True, module.stacks)
        _change_class(module, kind, latents, scales, quantizer, module.transposed)

    def latents_of(self, name: str) -> list[Any]:
        return [getattr(self, part) for part in _parameter_names(name, "latent", self.split)]

    def scales_of(self, name: str) -> list[Any]:
        return (
            [getattr(self, part) for part in _parameter_names(name, "scale", self.split)]
            if self.quantizer.learned
            else []
        )

    def stored_bits(self) -> tuple[StoredBits, ...]:
        """Say what packing keeps of each stack."""
        return tuple(self._stored(name) for name in self.stacks)

    def _stored(self, name: str) -> StoredBits:
        latents = self.latents_of(name)
        names = _parameter_names(name, "latent", self.split)
        if self.quantizer.learned:
            names += _parameter_names(name, "scale", self.split)
        experts, *one = _as_rows(latents[0], self.transposed).shape
        found = StoredBits.from_quantizer(names, self.quantizer, tuple(one), halves=len(latents))
        return replace(found, weights=experts * found.weights, scales=experts * found.scales)

    def effective(self, name: str) -> torch.Tensor:
        """Compute the effective stack; once within a forward pass, where a loop over experts reads it many times."""
        cache = self.__dict__.get("_forward_cache")
        if cache is not None and name in cache:
            return cache[name]
        latents, scales = self.latents_of(name), self.scales_of(name)
        found = FakeQuantize.apply(self.quantizer, self.strength, self.transposed, len(latents), *latents, *scales)
        if cache is not None:
            cache[name] = found
        return found

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._forward_cache = {}
        try:
            if self.activations is None:
                return super().forward(hidden_states, *args, **kwargs)
            hidden_states = self._rounded(hidden_states, self.stacks[0])
            # The model's own loop applies the gate itself; the others call _apply_gate, where activations can be
            # rounded.
            how = getattr(self.config, "_experts_implementation", None)
            run = ALL_EXPERTS_FUNCTIONS["grouped_mm" if how in (None, "eager") else how]
            return run(self, hidden_states, *args, **kwargs)
        finally:
            self._forward_cache = None

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self._rounded(super()._apply_gate(gate_up), self.stacks[1])

    def _rounded(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.activations is None:
            return x
        return RoundActivations.apply(
            x, getattr(self, f"{name}_activation_clip", None), self.strength, self.activations
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.stacks:
            parts = self.latents_of(name), self.scales_of(name)
            destination[f"{prefix}{name}"] = effective_weight(self.quantizer, *parts, self.strength, self.transposed)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.stacks:
            effective = state_dict.pop(f"{prefix}{name}", None)
            if effective is not None and not self.split and f"{prefix}{name}_latent" not in state_dict:
                state_dict[f"{prefix}{name}_latent"] = effective
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __reduce__(self) -> Any:
        """Pickle what the class is made of: it is made at run time, and is made again where the pickle is read."""
        return _empty_instance, (self.plain, self.levels, self.split, self.stacks), self.__dict__


def layout_of(module: Any) -> tuple[tuple[str, ...], bool]:
    """Return the names of a module's stacks, and whether they are stored transposed; no names where it has none."""
    if isinstance(module, QuantizedExperts):
        return module.stacks, module.transposed
    own = {name: p for name, p in module.named_parameters(recurse=False) if name in _STACKS and p.dim() == 3}
    names = tuple(name for name in _STACKS if name in own)
    if len(names) != 2 or names[1] != "down_proj":
        return (), False
    transposed = vars(module).get("is_transposed")
    if transposed is None:
        if names[0] != "gate_up_proj":
            return (), False
        # Gate and up projections share a matrix: its outputs are twice as many as the down projection's inputs.
        first, second = own[names[0]].shape, own[names[1]].shape
        transposed = first[2] == 2 * second[1] and first[1] == second[2]
        if not transposed and (first[1] != 2 * second[2] or first[2] != second[1]):
            return (), False
    return names, transposed


@functools.cache
def _class_of(plain: Any, levels: str, split: bool, stacks: tuple[str, ...]) -> Any:
    def reader(name: str) -> property:
        return property(lambda self: self.effective(name))

    own: dict[str, Any] = {name: reader(name) for name in stacks}
    if not hasattr(plain, "_apply_gate"):
        own["_apply_gate"] = property(lambda self: _no_apply_gate(plain))
    elif stacks[0] == "up_proj":  # without a gate, only the activation function comes before the down projections
        own["act_fn"] = property(lambda self: lambda x: self._rounded(self._modules["act_fn"](x), stacks[1]))
    own |= {"plain": plain, "levels": levels, "split": split, "stacks": stacks, "__module__": __name__}
    name = f"{'Split' if split else levels.title()}{plain.__name__}"
    return type(name, (QuantizedExperts, plain), own)


def _no_apply_gate(plain: type) -> Any:
    raise AttributeError(f"{plain.__name__} has no _apply_gate")


def _empty_instance(*of: Any) -> Any:
    kind = _class_of(*of)
    return kind.__new__(kind)


def _change_class(module: Any, kind: Any, latents: dict, scales: dict, quantizer: Quantizer, transposed: bool) -> None:
    """Change the class, and put the parameters under their new names, in the order of the old ones."""
    parameters = dict(module._parameters)
    module._parameters.clear()
    module.__class__ = kind
    module.quantizer, module.transposed, module._forward_cache, module.strength_owner = (
        quantizer,
        transposed,
        None,
        None,
    )
    stacks = {form: name for name in kind.stacks for form in (name, f"{name}_latent")}
    old = {f"{name}_scale" for name in kind.stacks}
    for key, parameter in parameters.items():
        name = stacks.get(key)
        if name is None and key not in old:
            module._parameters[key] = parameter
        elif name is not None:
            own = scales.get(name, ())
            if quantizer.learned and not own:
                rows = _as_rows(latents[name][0], transposed)
                own = [
                    nn.Parameter(
                        quantizer.initial_scales(rows).to(rows.dtype), requires_grad=latents[name][0].requires_grad
                    )
                ]
            module._parameters.update(zip(_parameter_names(name, "latent", kind.split), latents[name], strict=True))
            if quantizer.learned:
                module._parameters.update(zip(_parameter_names(name, "scale", kind.split), own, strict=True))
    module.strength = None


def _set_activations(module: Any, activations: Activations | None) -> None:
    module.activations = activations
    for name in module.stacks:
        module._parameters.pop(f"{name}_activation_clip", None)
        if activations is not None and activations.clip is not None:
            latent = module.latents_of(name)[0]
            clip = nn.Parameter(activations.initial_range().to(latent.device), requires_grad=latent.requires_grad)
            module.register_parameter(f"{name}_activation_clip", clip)


def _parameter_names(name: str, what: str, split: bool) -> tuple[str, ...]:
    return (f"{name}_{what}_1", f"{name}_{what}_2") if split else (f"{name}_{what}",)


def _as_rows(stack: torch.Tensor, transposed: bool) -> torch.Tensor:
    return stack.mT if transposed else stack


def stacks_in(module: QuantizedExperts) -> Sequence[Any]:
    """Return all latent stacks of a module."""
    return [latent for name in module.stacks for latent in module.latents_of(name)]
