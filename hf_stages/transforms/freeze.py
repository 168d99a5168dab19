"""Stop training some parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from hf_stages.transforms._parameters import as_names, select_parameters
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class Freeze(Transform):
    """Parameters whose names match get no gradient and no optimizer state: Adam keeps 8 bytes per trained fp32 weight.

    A pattern is a whole name, a run of its dotted parts, or has wildcards. A tied weight answers to each of its names,
    and freezing one of them freezes the tensor. In a PEFT model names of the base model hold too.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> [name for name, p in Freeze("*", but="1.bias")(model).named_parameters() if p.requires_grad]
    ['1.bias']
    """

    patterns: str | Sequence[str]
    """Names of parameters or modules, with ``*`` for any text."""
    but: str | Sequence[str] = field(default=(), kw_only=True)
    """Names left as they are, although a pattern matches them."""
    structural = False
    keeps_function = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", as_names(self.patterns, where="Freeze"))
        object.__setattr__(self, "but", as_names(self.but, where="Freeze: but") if self.but else ())

    def __call__(self, model: nn.Module) -> nn.Module:
        spared = {id(parameter) for parameter in select_parameters(model, tuple(self.but), where="Freeze: but")}
        for parameter in select_parameters(model, tuple(self.patterns), where="Freeze"):
            if id(parameter) not in spared:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"Freeze: {list(self.patterns)} leaves no trainable parameter in {type(model).__name__}; expected at "
                "least one. Match less, spare some with but=[...], or Unfreeze([...]) others before"
            )
        return model
