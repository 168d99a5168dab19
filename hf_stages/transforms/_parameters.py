"""Which parameters a pattern means, also where PEFT has renamed them or where tied weights have two names."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_stages.transforms._patterns import match_names
from hf_stages.transforms._peft import base_name, has_adapters


def as_names(value: Any, *, where: str) -> tuple[str, ...]:
    """One name or several, as a tuple.

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
    """The parameters that any pattern matches, each once. In a PEFT model their names in the base model hold too."""
    adapters = has_adapters(model)
    named: dict[str, list[nn.Parameter]] = {}
    # remove_duplicate=False: a tied weight is found by each of its names.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not adapters:
            named[name] = [parameter]
        elif (base := base_name(name)) is not None:
            for form in {name, base}:
                named.setdefault(form, []).append(parameter)
    found = [parameter for name in match_names(patterns, named, where=where) for parameter in named[name]]
    return list({id(parameter): parameter for parameter in found}.values())
