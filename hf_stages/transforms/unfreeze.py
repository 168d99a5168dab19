"""Train parameters that were frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hf_stages.transforms._parameters import as_names, select_parameters
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class Unfreeze(Transform):
    """The reverse of Freeze, with the same patterns: gradual unfreezing is one ``Unfreeze`` per stage.

    From the last layer down, one layer per epoch: ULMFiT (https://arxiv.org/abs/1801.06146), section 3.3.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).requires_grad_(False)
    >>> [name for name, p in Unfreeze("1")(model).named_parameters() if p.requires_grad]
    ['1.weight', '1.bias']
    """

    patterns: str | Sequence[str]
    """Names of parameters or modules, with ``*`` for any text, as in ``Freeze``."""
    structural = False
    keeps_function = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", as_names(self.patterns, where="Unfreeze"))

    def __call__(self, model: nn.Module) -> nn.Module:
        found = select_parameters(model, tuple(self.patterns), where="Unfreeze")
        # Quantized weights are integers; torch refuses gradients for them.
        trainable = [parameter for parameter in found if parameter.is_floating_point() or parameter.is_complex()]
        if not trainable:
            raise ValueError(
                f"Unfreeze: {list(self.patterns)} matches integer (quantized) weights only, which cannot be trained; "
                "expected a floating-point one. Train adapters on them: AddLora()"
            )
        for parameter in trainable:
            parameter.requires_grad_(True)
        return model
