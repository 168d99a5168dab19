"""What a detector is: a gate that says what is wrong, alerts once, or climbs a ladder of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hf_stages.core.ledger import Entry
from hf_stages.core.part import Derived
from hf_stages.core.stage_context import StageContext
from hf_stages.gates.actions.base import Action
from hf_stages.gates.actions.rollback import Rollback
from hf_stages.gates.base import Decision, Gate, History
from hf_stages.gates.detectors.rungs import Ladder

_DECISIONS = ("alert", "cut_lr", "rollback", "end", "stop")


@dataclass(frozen=True)
class Finding:
    """What a detector found.

    >>> Finding("the loss is far above its best", {"loss": 7.1, "best": 2.25}, "lower the learning rate").text
    'the loss is far above its best (loss 7.1, best 2.25); to try: lower the learning rate'
    """

    what: str
    """In words, what is wrong."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What it was seen by."""
    advice: str = ""
    """In words, what to try."""
    mild: bool = False
    """True: it is worth an alert, and too early for an action."""

    @property
    def text(self) -> str:
        """The finding as a sentence, for the ledger and the log."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        text = f"{self.what} ({numbers})" if numbers else self.what
        return f"{text}; to try: {self.advice}" if self.advice else text


@dataclass(frozen=True)
class Detector(Gate):
    """Base of all detectors: a frozen dataclass with ``find(history)``, which says what is wrong, or None.

    Without ``then`` a detector alerts, once for each incident. With ``then`` each finding within ``cooldown`` updates
    of the last one takes the next action; the last action stays; after ``cooldown`` updates without one it begins with
    the first again. All of this is computed from the ledger, so a run that is resumed repeats none of it.

    Detectors of one class in one stage share their ladder and their incidents.

    >>> @dataclass(frozen=True)
    ... class Doubled(Detector):
    ...     def find(self, history):
    ...         losses = [loss for _, loss in history.series("loss")]
    ...         return Finding("the loss doubled") if losses and losses[-1] > 2 * losses[0] else None
    >>> logs = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 4.5}]
    >>> Doubled()(History(step=20, logs=logs)).action
    'alert'
    >>> Doubled(then=Rollback(100))(History(step=20, logs=logs)).action
    'rollback'
    """

    then: Action | Sequence[Action] = field(default=(), kw_only=True)
    """What to do at an alert, the mildest first; empty only alerts."""
    compares_depths = False
    """True: it compares depths of an evaluation set (its field ``of``), so the stage must evaluate at several."""
    cooldown: int = field(default=50, kw_only=True)
    """After this many updates without an alert, ``then`` begins with its first action again."""
    rows: bool = field(default=False, kw_only=True)
    """Whether the rows of the newest update are written down at an alert, for ``hf-stages incident``."""

    @Derived
    def keeps(self) -> bool:
        """True where an action goes back, so the stage stores states to go back to."""
        return any(isinstance(action, Rollback) for action in getattr(self, "then", ()))

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        actions = (self.then,) if isinstance(self.then, Action) else self.then
        if isinstance(actions, str) or not isinstance(actions, Sequence):
            raise ValueError(f"{name}: then: expected actions such as CutRate(0.5), got {self.then!r}")
        for action in actions:
            if not isinstance(action, Action):
                given = f"the class {action.__name__}" if isinstance(action, type) else repr(action)
                raise ValueError(f"{name}: then: expected an action such as CutRate(0.5), got {given}")
        object.__setattr__(self, "then", tuple(actions))
        if self.cooldown < 1:
            raise ValueError(f"{name}: cooldown: expected at least 1 update, got {self.cooldown}")

    @property
    def ladder(self) -> Ladder | None:
        """The actions as a ladder; None where it only alerts."""
        actions = self.then
        assert isinstance(actions, tuple)
        return Ladder(actions, self.cooldown) if actions else None

    def find(self, history: History) -> Finding | None:
        """Say what is wrong, judged by what was logged after ``history.since`` (``history.series``), or None."""
        raise NotImplementedError(f"{type(self).__name__} must define find(history)")

    def decisions(self, history: History) -> list[Entry]:
        """Return the entries of the ledger that this detector's alerts and actions have left, oldest first."""
        return [e for e in history.entries if e.by == type(self).__name__ and e.kind in _DECISIONS]

    def actions_taken(self, history: History) -> list[Entry]:
        """Return those of its entries that were rungs of its ladder, oldest first."""
        kinds = {action.decide().action for action in self.then} | {"stop"}  # type: ignore[union-attr]
        return [entry for entry in self.decisions(history) if entry.kind in kinds]

    def decide(self, finding: Finding, history: History) -> Decision:
        """Return what to do about a finding at this step: an alert, or the next action."""
        if self.ladder is None or finding.mild:
            return Decision("alert", finding.text)
        taken = [entry.step for entry in self.actions_taken(history)]
        return self.ladder.next(taken, history.global_step)(finding.text)

    def __call__(self, history: History) -> Decision | None:
        told = self.decisions(history)
        if told and told[-1].step >= history.global_step:  # there may be several logs of one update
            return None
        # What was logged before a rollback speaks of weights that are gone; what was acted on is not acted on again.
        went_back = [e.step for e in history.entries if e.kind == "rollback"]
        own = [e.step for e in self.actions_taken(history)] if self.ladder is not None else []
        history = replace(history, since=max([history.since, *went_back, *own]))
        finding = self.find(history)
        if finding is None:
            return None
        only_alerts = self.ladder is None or finding.mild
        return None if only_alerts and told and self._is_told(history, told[-1].step) else self.decide(finding, history)

    def _is_told(self, history: History, told: int) -> bool:
        """Whether the last alert, at step ``told``, was of this same incident: no long stretch between was healthy.

        Every earlier log that shows trouble was an alert or belonged to one, so the newest of them decides.
        """
        for count in range(len(history.logs) - 1, 0, -1):
            step = history.logs[count - 1]["step"]
            if step <= told:
                return True
            before = replace(history, logs=history.logs[:count], step=step - history.first_step)
            if self.find(before) is not None:
                return True
            if history.global_step - step > self.cooldown:
                return False
        return True

    def check_stage(self, context: StageContext) -> None:
        """Refuse a way back that the stage cannot offer."""
        super().check_stage(context)
        if self.keeps and context.args.load_best_model_at_end:
            raise ValueError(
                "then: Rollback and load_best_model_at_end both choose what the stage ends with; leave one of them out"
            )
        if self.keeps and context.sharded:
            raise ValueError("then: Rollback is not supported under FSDP; use CutRate or EndStage")
