"""Skip single updates that would do harm, and climb a ladder where skipping them is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_stages.core.ledger import Entry
from hf_stages.core.stage_context import StageContext
from hf_stages.gates.actions.stop_run import StopRun
from hf_stages.gates.base import Decision, History
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.gates.judged import WATCHED
from hf_stages.gates.spike_window import SIGMA, WINDOW


@dataclass(frozen=True)
class OnSpike(Detector):
    """Skips updates whose loss or gradient norm is a spike, or not finite, and climbs its ladder where that is no help.

    Each update is judged after its backward pass, before the optimizer's step, on the device: the step is left out by
    a factor there, and nothing waits for it. Weights, moments and the windows stay as they were. The ladder takes the
    next action where more than ``skip`` updates in a row were bad, without a good one between them; then so many more
    may be skipped before the action after it. Without ``then``, a loss or norm that stays that high is taken as the
    new level, and where values stay non-finite the run stops.

    >>> from hf_stages.gates import CutRate, Rollback
    >>> from hf_stages.gates.judged import JudgedUpdate
    >>> gate = OnSpike(skip=3, then=[CutRate(0.5), Rollback(steps=200)], cooldown=50)
    >>> bad = JudgedUpdate(True, {"loss": 9.0, "grad_norm": 1.0}, {"loss": 4.0, "grad_norm": 2.0})
    >>> skipped = [Entry(step, "", "skip", "", "OnSpike") for step in (100, 101, 102, 103)]
    >>> gate(History(step=102, entries=skipped[:3], update=bad)) is None
    True
    >>> gate(History(step=103, entries=skipped, update=bad)).action
    'cut_lr'
    """

    skip: int = 3
    """How many bad updates, one directly after the other, are skipped and no more; 0 skips only what is not finite."""
    sigma: float = SIGMA
    """How many standard deviations above the mean of the window a value is a spike."""
    window: int = WINDOW
    """How many values a new one is compared with. Spikes do not count among them; from 64 on (or all) it is active."""
    watch: Sequence[str] = WATCHED
    """What is watched for spikes: ``loss``, ``grad_norm`` or both."""
    non_finite: bool = True
    """Skip updates with a loss or gradient that is not finite. False: the loss ends the run, as without a gate."""
    rows: bool = field(default=True, kw_only=True)
    """Whether the rows of a bad update are written down, for ``hf-stages incident``."""
    on = "update"

    def __post_init__(self) -> None:
        super().__post_init__()
        watch = (self.watch,) if isinstance(self.watch, str) else tuple(self.watch)
        object.__setattr__(self, "watch", watch)
        if not watch or (wrong := [name for name in watch if name not in WATCHED]):
            got = repr(wrong[0]) if watch else "nothing"
            raise ValueError(f"OnSpike: watch: expected loss, grad_norm or both, got {got}")
        for name, least in (("skip", 0), ("window", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"OnSpike: {name}: expected at least {least}, got {getattr(self, name)}")
        if not self.sigma > 0:
            raise ValueError(f"OnSpike: sigma: expected a number above 0, got {self.sigma}")
        self.refuse_infinite("sigma")

    def find(self, history: History) -> Finding | None:
        judged = history.update
        if judged is None or not judged.is_bad:
            return None
        advice = "" if self.then else "give it a ladder, such as then=[CutRate(0.5), Rollback(200)]"
        if not judged.is_finite:
            advice = "look at the update's rows (hf-stages incident), the precision and the learning rate"
        return Finding(judged.text, advice=advice)

    def __call__(self, history: History) -> Decision | None:
        finding = self.find(history)
        if finding is None or self._may_skip(history):
            return None
        often = Finding(f"more than {self.skip} bad updates in a row: {finding.what}", advice=finding.advice)
        return self.decide(often if self.skip else finding, history)

    def decide(self, finding: Finding, history: History) -> Decision:
        """Return the next action; the first one again where the last lies more than ``cooldown`` updates back."""
        if self.ladder is None:
            stops = history.update is not None and not history.update.is_finite
            return StopRun()(finding.text) if stops else Decision("alert", finding.text)
        taken = [entry.step for entry in self._own(history) if entry.kind != "skip"]
        return self.ladder.next(taken, history.global_step)(finding.text)

    def _may_skip(self, history: History) -> bool:
        """Whether so many bad updates in a row, this one among them, are only skipped."""
        assert history.update is not None
        count, last = 0 if history.update.was_skipped else 1, history.global_step
        for entry in reversed(self._own(history)):
            if entry.kind != "skip" or last - entry.step > 1:
                break
            count, last = count + 1, entry.step
        return count <= self.skip

    def _own(self, history: History) -> list[Entry]:
        kinds = ("skip", *{entry.kind for entry in self.decisions(history)})
        return [entry for entry in history.entries if entry.by == type(self).__name__ and entry.kind in kinds]

    def check_stage(self, context: StageContext) -> None:
        """Refuse where an update cannot be left out."""
        super().check_stage(context)
        others = [gate for gate in context.stage.gates if isinstance(gate, OnSpike)]
        if len(others) > 1:
            raise ValueError(f"a stage takes one of them, which judges each update; got {len(others)}")
        args = context.args
        if args.fp16:
            raise ValueError("fp16: its gradient scaler skips updates by a rule of its own; use bf16")
        if getattr(args, "deepspeed", None):
            raise ValueError("DeepSpeed steps in its own engine, where no update can be left out; use DDP or FSDP2")
        optim = str(getattr(args.optim, "value", args.optim))
        if "lomo" in optim or "layerwise" in optim:
            raise ValueError(f"optim: {optim!r} steps during the backward pass, before an update can be judged")
