"""Another depth for a model that has a recurrent core already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_stages.core.curves import Curve
from hf_stages.layers.recurrent import find_recurrence, set_training_depth
from hf_stages.transforms._recurrence import as_mean_depth, check_count, mean_depth_at
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class SetRecurrence(Transform):
    """A later stage trains a recurrent core at another mean depth, or runs another one in evaluation.

    What is left out stays as the stage before left it.

    >>> from hf_stages.core.curves import Linear
    >>> SetRecurrence(mean_depth=Linear(8, 32))
    SetRecurrence(mean_depth=Linear(start=8, end=32), depth=None, backprop=None)
    """

    mean_depth: float | Curve | None = None
    """In training, cycles are 1 plus a random number of this mean. A curve changes it over the stage."""
    depth: int | None = None
    """Cycles in evaluation and generation. None: the mean depth at the stage's end, where one is given."""
    backprop: int | None = None
    """Gradients flow through so many last cycles."""

    structural = False

    def __post_init__(self) -> None:
        if self.mean_depth is self.depth is self.backprop is None:
            raise ValueError("SetRecurrence: expected mean_depth=, depth= or backprop=, got none of them")
        for name in ("depth", "backprop"):
            if getattr(self, name) is not None:
                check_count(f"SetRecurrence: {name}", getattr(self, name), 1)
        if self.mean_depth is not None:
            object.__setattr__(self, "mean_depth", as_mean_depth(self.mean_depth, where="SetRecurrence"))

    def __call__(self, model: Any) -> Any:
        if find_recurrence(model) is None:
            raise ValueError(
                f"SetRecurrence: {type(model).__name__} has no recurrent core; put MakeRecurrent before, in this stage "
                "or an earlier one"
            )
        mean = None if self.mean_depth is None else mean_depth_at(self.mean_depth, 1.0)
        depth = self.depth if self.depth is not None or mean is None else max(round(mean), 1)
        set_training_depth(model, mean_depth=mean, depth=depth, backprop=self.backprop)
        return model

    def at(self, model: Any, t: float) -> None:
        """Set the mean depth of what is drawn in training."""
        core = find_recurrence(model)
        if core is not None and self.mean_depth is not None:
            core.mean_depth = mean_depth_at(self.mean_depth, t)
