"""Parameters that a pattern matches, also where PEFT has renamed them or where tied weights have two names."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_stages.layers.quantized import WithStrength
from hf_stages.transforms._patterns import match_names
from hf_stages.transforms._peft import base_name, has_adapters


def as_names(value: Any, *, where: str) -> tuple[str, ...]:
    """Return one name or several as a tuple.

    >>> as_names("lm_head", where="Freeze"), as_names(["a", "b"], where="Freeze")
    (('lm_head',), ('a', 'b'))
    """
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"{where}: expected a name pattern or a list of them, such as 'layers.0' or '*.bias', got {value!r}"
        )
    return names


def select_parameters(model: nn.Module, patterns: tuple[str, ...], *, where: str) -> list[nn.Parameter]:
    """Select the parameters that any pattern matches, each once.

    In a PEFT model the names of the base model match too. The ``weight`` of a quantized layer stands for the latent
    weights that it is made of.
    """
    adapters = has_adapters(model)
    named: dict[str, list[nn.Parameter]] = {}
    latents = _latent_names(model)
    # remove_duplicate=False: a tied weight is found by each of its names.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = latents.get(name, name)
        if not adapters:
            for form in {name, plain}:
                named.setdefault(form, []).append(parameter)
        elif (base := base_name(name)) is not None:
            for form in {name, base, base_name(plain) or base}:
                named.setdefault(form, []).append(parameter)
    found = [parameter for name in match_names(patterns, named, where=where) for parameter in named[name]]
    return list({id(parameter): parameter for parameter in found}.values())


def _latent_names(model: nn.Module) -> dict[str, str]:
    """Map names of latent weights and learned scales to the name of the effective weight."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, WithStrength):
            for name, _ in module.named_parameters(recurse=False):
                plain, what, _ = name.partition("_latent") if "_latent" in name else name.partition("_scale")
                if what:
                    prefix = f"{path}." if path else ""
                    found[f"{prefix}{name}"] = f"{prefix}{plain}"
    return found
