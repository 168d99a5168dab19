"""Watch the loss functions of torch that a forward calls, or give their values another weight."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NAMES = (
    "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "ctc_loss", "kl_div", "poisson_nll_loss", "gaussian_nll_loss",
)  # fmt: skip
LOSSES = {getattr(functional, name): inspect.signature(getattr(functional, name)) for name in _NAMES}
_CLASSES = (functional.cross_entropy, functional.nll_loss)


@dataclass(frozen=True)
class Call:
    """One call of a loss function, and its arguments by name."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    @cached_property
    def value_by_item(self) -> torch.Tensor:
        """The value for each item."""
        return self.function(**{**self.arguments, "reduction": "none"})

    def value(self) -> torch.Tensor:
        return self.function(**self.arguments)

    @property
    def reduction(self) -> str:
        return self.arguments["reduction"]

    @property
    def target(self) -> torch.Tensor | None:
        found = self.arguments.get("target", self.arguments.get("targets"))
        if not torch.is_tensor(found) or self.function is functional.ctc_loss:
            return None
        return found

    @property
    def ignored_label(self) -> int | None:
        return self.arguments.get("ignore_index") if self.has_class_targets else None

    @property
    def has_class_targets(self) -> bool:
        target = self.target
        return self.function in _CLASSES and target is not None and not target.is_floating_point()

    @property
    def weights(self) -> torch.Tensor | None:
        return self.arguments.get("weight") if self.has_class_targets else None

    def items(self) -> Any:
        """Count what the mean of this function is divided by."""
        if not self.has_class_targets or self.target is None:
            return self.value_by_item.numel()
        kept = self.target.ne(self.ignored_label)
        return kept.sum() if self.weights is None else self.weights[self.target[kept]].sum()

    def reduced(self, each: torch.Tensor) -> torch.Tensor:
        """Reduce values by item as the function does; zero, not 0/0, where it has none."""
        if self.reduction == "none":
            return each
        if self.function is functional.ctc_loss and self.reduction == "mean":
            return (each / self.target_lengths(each)).mean()
        return each.sum() / (self.items() or 1) if self.reduction == "mean" else each.sum()

    def target_lengths(self, each: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.arguments["target_lengths"], device=each.device).clamp(min=1)


class LossCalls(TorchFunctionMode):
    """Replace, within the block, the value of each call of a loss function by ``answer(place, call)``.

    A compiled model makes no calls that could be seen. So compiled code runs eagerly within the block.

    Args:
        answer: Is given the number of the call in this forward, from 0, and the call.
    """

    def __init__(self, answer: Callable[[int, Call], torch.Tensor]) -> None:
        super().__init__()
        self.answer, self.count = answer, 0
        self._eager: Any = nullcontext()

    def __enter__(self) -> LossCalls:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._eager.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = _call(func, args, kwargs) if func in LOSSES else None
        if call is None:
            return func(*args, **kwargs)
        self.count += 1
        return self.answer(self.count - 1, call)


def _call(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Call | None:
    bound = LOSSES[func].bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    if given.get("reduce") is not None or given.get("size_average") is not None:
        return None
    if given["reduction"] not in ("mean", "sum", "none"):
        return None
    return Call(func, given)
