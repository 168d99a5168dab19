"""All monitors of a stage, or of a plain Trainer's training, at work: called at their places, read in one transfer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hf_stages.core.occasions import Occasions, as_occasions
from hf_stages.monitors.base import Asked, Monitor, Readings, WatchedRun, Watcher, is_due


class Monitoring:
    """Runs the monitors of one stage.

    The loop calls these methods in this order: ``reading`` around taking the batches, ``begin_update``, ``micro_batch``
    after each backward pass, ``end_gradients``, ``gradient_norm``, ``before_step``, ``after_step``, ``end_update``, and
    ``log`` where the training log is written.

    Args:
        monitors: As declared; groups among them are opened.
        run: What they may look at.
        steps: The update that the stage is at.
    """

    def __init__(self, monitors: Iterable[Any] = (), run: WatchedRun | None = None, steps: int = 0) -> None:
        self.last_log = steps
        """The update of the log before."""
        self._names: list[str] = []
        self._watchers: list[tuple[Watcher, Occasions | None]] = []
        declared = tuple(monitors)
        for monitor in declared:
            assert run is not None
            for one in _members(monitor, run, declared):
                check_monitor(one, run)
                every = as_occasions(getattr(one, "every", None), f"{run.where}: {type(one).__name__}")
                self._names.append(type(one).__name__)
                self._watchers.append((one.watch(run) if hasattr(one, "watch") else Asked(one), every))
        self._calls = {name: self._that_define(name) for name in _EACH_UPDATE}
        self._keeps_batch = any(isinstance(watcher, Asked) for watcher, _ in self._watchers)
        self._newest: dict[str, Any] = {"batch": None, "loss": None}
        self._looking: list[Watcher] = []
        """Those that look at weights and gradients of the update in progress."""
        self._clock, self._began, self._waited = 0.0, 0.0, 0.0

    # ---- an update ---------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Measure how long the loop waits for its batches."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._waited = time.monotonic() - self._began

    def begin_update(self, step: int, *, logged: bool) -> None:
        """Begin the update ``step``, counted from 1; ``logged`` tells whether a log follows it."""
        due = [watcher for watcher, every in self._watchers if logged and is_due(every, self.last_log, step)]
        self._looking = [watcher for watcher in due if any(_defines(watcher, name) for name in _WHERE_LOGGED)]

    def micro_batch(self, loss: torch.Tensor, batch: Mapping[str, Any]) -> None:
        if self._keeps_batch:
            self._newest = {"batch": batch, "loss": loss}
        for watcher in self._calls["micro_batch"]:
            watcher.micro_batch(loss, batch)

    def end_gradients(self) -> None:
        """Take note that the gradients of the update are complete: its last backward pass is done."""
        for watcher in self._calls["end_micro_batches"]:
            watcher.end_micro_batches()
        for watcher in self._looking:
            watcher.gradients()

    def gradient_norm(self, norm: Any) -> None:
        """Take note of the norm that Trainer measured before it clipped."""
        for watcher in self._calls["gradient_norm"]:
            watcher.gradient_norm(norm)

    def before_step(self) -> None:
        for watcher in self._looking:
            watcher.before_step()

    def after_step(self) -> None:
        for watcher in self._looking:
            watcher.after_step()
        self._looking = []

    def end_update(self) -> None:
        self._clock = time.monotonic()
        for watcher in self._calls["timing"]:
            watcher.timing(self._waited, self._clock - self._began)

    # ---- a log -------------------------------------------------------------------------------------------------------

    def log(self, view: Mapping[str, Any]) -> dict[str, float]:
        """Ask the monitors that are due. All their tensors come from the device in one transfer."""
        step = view["step"]
        if self._calls["timing"] and self._clock:  # the log has just waited for what the device had yet to do
            for watcher in self._calls["timing"]:
                watcher.timing(0.0, time.monotonic() - self._clock)
        seen: dict[str, Any] = {}
        for watcher, every in self._watchers:
            if is_due(every, self.last_log, step):
                seen.update(watcher.log({**view, **self._newest}))
        self.last_log = step
        return as_floats(seen)

    def reset(self) -> None:
        """Forget what was gathered since the last log: the stage went back to earlier weights."""
        for watcher, _ in self._watchers:
            watcher.reset()

    # ---- what survives a cut -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if not self._watchers:
            return {}
        states = [watcher.state_dict() for watcher, _ in self._watchers]
        held = [[name, state] for name, state in zip(self._names, states, strict=True)]
        return {"last_log": self.last_log, "watchers": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a checkpoint's state. Monitors that were declared since begin anew."""
        held = [tuple(entry) for entry in state.get("watchers", ())]
        self.last_log = state.get("last_log", self.last_log)
        for name, (watcher, _) in zip(self._names, self._watchers, strict=True):
            found = next((entry for entry in held if entry[0] == name), None)
            if found is not None:
                held.remove(found)
                watcher.load_state_dict(found[1])

    def _that_define(self, name: str) -> list[Watcher]:
        return [watcher for watcher, _ in self._watchers if _defines(watcher, name)]


_EACH_UPDATE = ("micro_batch", "end_micro_batches", "gradient_norm", "timing")
_WHERE_LOGGED = ("gradients", "before_step", "after_step")


def _defines(watcher: Watcher, name: str) -> bool:
    return getattr(type(watcher), name) is not getattr(Watcher, name)


def check_monitor(monitor: Any, run: WatchedRun) -> None:
    """Refuse what is no monitor, and a monitor that cannot work in this run."""
    if isinstance(monitor, Monitor):
        monitor.check(run)
    if not callable(monitor) and not hasattr(monitor, "watch"):
        raise ValueError(f"{run.where}: expected a monitor or a function of the view, got {monitor!r}")
    as_occasions(getattr(monitor, "every", None), f"{run.where}: {type(monitor).__name__}")


def _members(monitor: Any, run: WatchedRun, declared: Sequence[Any]) -> list[Any]:
    """Return the monitors that a group stands for in this run, but for those that are declared themselves."""
    if not isinstance(monitor, Monitor) or not hasattr(monitor, "members"):
        return [monitor]
    apart = {type(one) for one in declared}
    return [one for one in monitor.members(run) if type(one) not in apart]


def as_floats(values: Readings) -> dict[str, float]:
    """Bring tensors of one element to the host: one transfer for each device that they are on."""
    found: dict[str, Any] = dict(values)
    tensors: dict[str, torch.Tensor] = {name: value for name, value in values.items() if torch.is_tensor(value)}
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    for device, names in by_device.items():
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        together = torch.stack([tensors[name].detach().reshape(()).to(dtype) for name in names])
        found.update(zip(names, together.tolist(), strict=True))
    return found


def logs_at(args: Any, step: int) -> bool:
    """Whether Trainer logs after the update ``step``. Where it logs by epochs, any update may be the last of one."""
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if strategy != "steps":
        return strategy == "epoch"
    return step % max(int(args.logging_steps), 1) == 0 or (step == 1 and args.logging_first_step)
