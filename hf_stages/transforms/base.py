"""What a transform is: it makes a model from a model, can be replayed, and says where the optimizer's moments go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_stages.core.curves import Curve
from hf_stages.core.part import Derived
from hf_stages.core.stage_context import StageContext


class Transform:
    """Base of all transforms: a frozen dataclass with ``__call__(model) -> model``.

    A transform may change the model in place and return it, or return another one. It must depend on the model and
    on its own fields alone (random initialization is seeded by the trainer), because a resumed run replays it.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Scale(Transform):
    ...     by: float
    ...     def __call__(self, model):
    ...         for parameter in model.parameters():
    ...             parameter.data.mul_(self.by)
    ...         return model
    >>> import torch
    >>> Scale(2.0)(torch.nn.LayerNorm(1)).weight.item()
    2.0
    """

    structural: bool = True
    """False: parameters keep their names and shapes (freezing). True: the optimizer is built anew."""
    keeps_function: bool = False
    """True: outputs stay equal. The trainer checks it on a real batch and records the deviation."""

    sets_task: bool = False
    """True: the model gets another task (a new head), so what was measured before cannot be measured after it."""

    @Derived
    def varies(self) -> bool:
        """True: the model changes with the stage's progress and is complete only at its end (see ``at``).

        Default: whether a field ``strength`` is a curve.
        """
        return isinstance(getattr(self, "strength", None), Curve)

    def __call__(self, model: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(model)")

    def check(self, model: Any) -> None:
        """Raise ValueError where it cannot change this model. Asked where no skeleton can be built to try it on."""

    def check_stage(self, context: StageContext) -> None:
        """Raise ValueError where it cannot do its work in this stage. Asked before the first step.

        By default, refuse to choose the best checkpoint of a stage that begins without it.
        """
        if self.varies and context.args.load_best_model_at_end:
            raise ValueError(
                f"load_best_model_at_end: the best checkpoint may be one from before {type(self).__name__} reached "
                "full strength, when the model was better because it was not quantized yet; set it to False here, or "
                "go on to a stage without a curve"
            )

    def as_loaded(self, model: Any) -> Transform:
        """Return what is applied when a saved model is loaded into ``model``, whose head may be another one."""
        return self

    def at(self, model: Any, t: float) -> None:
        """Set what varies with the stage's progress ``t`` (a quantization strength). At the stage's end it is 1."""

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Return where each old parameter's moments go: by default, to the parameter of the same name."""
        known = set(after)
        return {name: [name] for name in before if name in known}
