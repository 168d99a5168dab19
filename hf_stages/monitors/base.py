"""What a monitor is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import Occasions

Readings = Mapping[str, "float | torch.Tensor"]
"""Numbers by the names that the log has for them. Tensors of one element stay on their device until all are read."""


class Monitor:
    """Base of all monitors. A monitor changes nothing; it adds numbers to the training log.

    The simple way is one method: ``__call__(view)`` is called at every training log (or on the occasions ``every``) and
    returns numbers to log with the loss. ``view`` holds

    - ``model`` (as it trains), ``step`` (updates done in the stage), ``t`` (progress from 0 to 1), ``tokens``,
    - ``teacher`` (which gives the stage's losses their signals, or None),
    - ``batch`` (the newest micro-batch) and ``loss`` (what it adds to the update's loss on this rank),
    - ``loss_terms`` (the weighted mean of each term since the last log, where there are several).

    A monitor that remembers something defines ``state_dict`` and ``load_state_dict``, and a resumed run continues with
    it. Any callable of one argument works.

    A monitor that looks at updates between two logs defines ``watch(run)`` instead, and returns a ``Watcher``.

    >>> class Norm(Monitor):
    ...     def __call__(self, view):
    ...         return {"weights": float(sum(p.detach().square().sum() for p in view["model"].parameters())) ** 0.5}
    >>> import torch
    >>> Norm()({"model": torch.nn.Linear(1, 1, bias=False).requires_grad_(False).apply(lambda m: m.weight.fill_(2.0))})
    {'weights': 2.0}
    """

    every: Any = None
    """On which updates it is asked. None: at each training log."""
    logs: ClassVar[tuple[str, ...]] = ()
    """Names that it logs; a name that ends in ``*`` stands for all names that begin so."""

    def __call__(self, view: Mapping[str, Any]) -> Readings:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(view), or watch(run)")

    def check(self, run: WatchedRun) -> None:
        """Refuse a run in which it cannot work, by ``run.error``. It is called before the run's first step.

        The model may lie on the meta device then, and there are no rows to look at.
        """


class Watcher:
    """A monitor at work in one stage: what it has gathered since the last log. Methods that are not needed stay away.

    Nothing here may wait for the device, except ``state_dict``: values are kept as tensors, and ``log`` returns
    tensors.
    """

    def micro_batch(self, loss: torch.Tensor, batch: Mapping[str, Any]) -> None:
        """Look at a micro-batch after its backward pass. ``loss`` is its part of the update's loss on this rank."""

    def end_micro_batches(self) -> None:
        """Take note that the update's last micro-batch is done."""

    def gradient_norm(self, norm: torch.Tensor) -> None:
        """Look at an update's gradient norm, as Trainer measures it before it clips."""

    def gradients(self) -> None:
        """Look at gradients that are complete and not yet clipped, on updates that are logged."""

    def before_step(self) -> None:
        """Look at weights before the optimizer's step, on updates that are logged."""

    def after_step(self) -> None:
        """Look at weights after the optimizer's step, on updates that are logged."""

    def timing(self, waited: float, took: float) -> None:
        """Take note of the seconds of an update, and of those among them that it waited for the data loader."""

    def log(self, view: Mapping[str, Any]) -> Readings:
        """Return what is to be logged, and gather anew."""
        return {}

    def reset(self) -> None:
        """Forget what was gathered: the weights are others now."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered since the last log, as plain numbers and lists."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what ``state_dict`` returned."""


@dataclass(frozen=True)
class WatchedRun:
    """What monitors may look at when they begin to watch: the model on its device, its data, the run's arguments."""

    model: Any
    """The model, neither wrapped nor compiled."""
    args: Any
    """The TrainingArguments."""
    where: str = "monitors"
    """How errors begin."""
    collated: Callable[[Any, int], Mapping[str, Any]] | None = None
    """Makes a batch on the model's device of the first rows of a dataset; None as the dataset means the run's own."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    """The datasets that the stage draws from, by name."""
    terms: tuple[str, ...] = ()
    """Names of the terms of the stage's loss."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes the context in which the model trains."""
    scaler: Any = None
    """Scales gradients of float16; None where they are not scaled."""
    sharded: bool = False
    """Whether each rank holds a part of every weight."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def error(self, monitor: Any, problem: str) -> ValueError:
        """Make the error of a monitor that cannot work in this run."""
        return ValueError(f"{self.where}: {type(monitor).__name__}: {problem}")


class Asked(Watcher):
    """A monitor of one method, asked at a log."""

    def __init__(self, monitor: Callable[[Mapping[str, Any]], Readings]) -> None:
        self.monitor = monitor

    def log(self, view: Mapping[str, Any]) -> Readings:
        return self.monitor(view)


def is_due(every: Occasions | None, before: int, now: int) -> bool:
    """Whether a monitor is asked at a log at the update ``now``, where the log before was at ``before``."""
    return every is None or every.between(before, now)


def check_count(monitor: Monitor, name: str) -> None:
    """Refuse a field that is no whole number of at least 1."""
    value = getattr(monitor, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{type(monitor).__name__}: {name}: expected a whole number, at least 1, got {value!r}")


def check_layers(monitor: Any) -> None:
    """Refuse a field ``layers`` that is no list of blocks' numbers, and keep it as a tuple."""
    layers = monitor.layers
    whole = isinstance(layers, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in layers)
    if not whole:
        raise ValueError(
            f"{type(monitor).__name__}: layers: expected a list of blocks' numbers such as [4, 8], got {layers!r}"
        )
    object.__setattr__(monitor, "layers", tuple(layers))
