"""Each stage's learning rate is the one that its plan and its folder name, whoever makes the optimizer."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer
from transformers.utils import logging

logger = logging.get_logger(__name__)
_MODELS = ("params", "model", "optimizer_dict")


def adopt_optimizer_rate(trainer: Any) -> None:
    """Take an lr in ``optimizer_cls_and_kwargs`` as the run's, in place of ``args.learning_rate``, as Trainer does."""
    if trainer.optimizer_cls_and_kwargs is None:
        return
    kwargs = trainer.optimizer_cls_and_kwargs[1]
    if of_model := [name for name in _MODELS if name in kwargs]:
        raise ValueError(
            f"optimizer_cls_and_kwargs: {of_model[0]!r} holds weights of the model as it is now; each stage makes its "
            "optimizer for the model as it has become: override create_optimizer(), and build the groups of self.model "
            "there"
        )
    if kwargs.get("lr") is None:
        return
    rate, args = float(kwargs["lr"]), trainer.args
    if rate != args.learning_rate:
        trainer.args = copy.copy(args)  # the user's own may serve another trainer
        trainer.args.learning_rate = rate
        logger.warning(
            f"optimizer_cls_and_kwargs: its lr of {rate:g} takes the place of args.learning_rate "
            f"({args.learning_rate:g}); a stage's "
            "own args and schedule go before both"
        )


def with_learning_rate(given: tuple[Any, Mapping[str, Any]] | None, rate: float) -> tuple[Any, dict[str, Any]] | None:
    """Copy ``optimizer_cls_and_kwargs`` for one stage, at its rate. Trainer takes things out of the copy."""
    if given is None:
        return None
    cls, kwargs = given
    takes = inspect.signature(cls).parameters if isinstance(cls, type) else {}
    return cls, {**kwargs, **({"lr": rate} if "lr" in kwargs or "lr" in takes else {})}


def check_rates(trainer: Any, optimizer: Any) -> None:
    """Refuse an optimizer whose groups train at rates of their own, whatever the stage says.

    Groups may differ from each other: the schedule multiplies each one's rate. But they have to be made from the
    stage's rate (a share of it for each layer). To see that, they are made once more at twice the rate. That they
    happen to fit a first stage does not hide that they will not fit the next.
    """
    peak = trainer._stage.rate.span.peak
    peaks = {peak, *(span.peak for span in trainer._staged_run_plan.spans.values())}
    where = f"stage {trainer._stage.planned.name!r}: learning rate"
    if isinstance(
        getattr(optimizer, "optimizer", optimizer), LayerWiseDummyOptimizer
    ):  # accelerate's wrapper taken off
        raise ValueError(
            f"{where}: a layer-wise optimizer steps each weight within the backward pass, past every schedule; use its "
            "plain form, such as optim='galore_adamw'"
        )
    found = rates_of(optimizer)
    fits = any(rate is not None and math.isclose(rate, peak, rel_tol=1e-6) for rate in found)
    if (fits and (len(peaks) == 1 or _made_as_trainer_does(trainer))) or _follows_the_stage(trainer, found, peak):
        return
    shown = ", ".join(dict.fromkeys("none" if rate is None else f"{rate:g}" for rate in found))
    raise ValueError(
        f"{where}: the optimizer's groups train at {shown}, whatever the stage says (here {peak:g}); make them from "
        "self.args.learning_rate (args.learning_rate in get_optimizer_cls_and_kwargs), which is the stage's: "
        "lr=self.args.learning_rate * share"
    )


def rates_of(optimizer: Any) -> list[Any]:
    """Read the rate of each group, before any schedule."""
    return [None if group.get("lr") is None else float(group["lr"]) for group in optimizer.param_groups]


def group_rates(trainer: Any, peak: float, end: float) -> list[float] | None:
    """Compute the rate that each group ends with; None where all end with the stage's own rate."""
    bases = getattr(trainer.lr_scheduler, "base_lrs", None)
    if not bases or not peak or all(math.isclose(base, peak, rel_tol=1e-6) for base in bases):
        return None
    return [float(base) / peak * end for base in bases]


def _made_as_trainer_does(trainer: Any) -> bool:
    """Whether the optimizer is made as Trainer makes it: from the args, or the stage's ``with_learning_rate``."""
    made = "create_optimizer" not in vars(trainer) and type(trainer).create_optimizer is Trainer.create_optimizer
    return made and trainer.get_optimizer_cls_and_kwargs is Trainer.get_optimizer_cls_and_kwargs


def _follows_the_stage(trainer: Any, found: list[Any], rate: float) -> bool:
    """Whether each group's rate, or at least one that is the stage's, doubles with the stage's."""
    if None in found or not rate:
        return False
    held, args = trainer.optimizer, trainer.args
    trainer.optimizer, trainer.args = None, copy.copy(args)
    trainer.args.learning_rate = 2 * rate
    if trainer.optimizer_cls_and_kwargs is not None:
        trainer.optimizer_cls_and_kwargs = with_learning_rate(trainer.optimizer_cls_and_kwargs, 2 * rate)
    given = trainer.optimizer_cls_and_kwargs
    try:
        with torch.random.fork_rng(devices=[]):
            made = trainer.create_optimizer()
            doubled = rates_of(trainer.optimizer if made is None else made)
    finally:
        trainer.optimizer, trainer.args = held, args
        trainer.optimizer_cls_and_kwargs = with_learning_rate(given, rate)
    return len(doubled) == len(found) and any(
        other is not None and math.isclose(other, 2 * one, rel_tol=1e-6)
        for one, other in zip(found, doubled, strict=True)
    )
