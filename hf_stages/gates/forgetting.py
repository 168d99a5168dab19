"""Watch what earlier stages learned, and act where a stage forgets more of it than its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_stages.gates.base import Decision, Gate, History

_ACTIONS = ("alert", "cut_lr", "rollback", "replay", "end")


@dataclass(frozen=True)
class Forgetting(Gate):
    """Acts where an evaluation finds the loss on an earlier domain above its value at the boundary, beyond a budget.

    - ``alert`` writes it down.
    - ``cut_lr`` multiplies the learning rate by ``factor`` from here on, down to ``floor``.
    - ``rollback`` goes back to the last state that an evaluation found within the budget (the stage's start at the
      earliest), and cuts the rate too. Where the rate is at its ``floor``, the stage ends with that state.
    - ``replay`` mixes a share of the earlier stages' data into this one's from here on, twice as much each time.
    - ``end`` ends the stage.

    >>> gate = Forgetting("5%", of=["prose"], action="cut_lr")
    >>> logs = [{"step": 10, "eval_prose_loss": 2.05}, {"step": 20, "eval_prose_loss": 2.2}]
    >>> gate(History(step=20, logs=logs, before={"eval_prose_loss": 2.0})).reason
    'prose: loss 2.2 is 10 % above 2 at the boundary (budget 5 %); the learning rate is cut to 0.5 of its schedule'
    """

    budget: float | str = "5%"
    """The rise that is allowed, as a share of the loss at the boundary: ``"5%"`` or ``0.05``."""
    of: Sequence[str] | None = None
    """Names of evaluation sets. None: those that stages before this one trained on."""
    action: Literal["alert", "cut_lr", "rollback", "replay", "end"] = "alert"
    """What to do beyond the budget: ``alert`` only writes it down, the others act as well."""
    factor: float = 0.5
    """What ``cut_lr`` and ``rollback`` multiply the learning rate by."""
    floor: float = 0.01
    """The rate is never cut below this share of the scheduled one."""
    patience: int = 1
    """How many evaluations in a row must be outside the budget."""
    share: float = 0.1
    """The share of the examples that ``replay`` takes from earlier data the first time."""
    most: float = 0.5
    """The largest share that ``replay`` takes; beyond it an alert says so, once."""
    source: Any = None
    """What ``replay`` draws from: a source's name, a curriculum or a dataset. None: what earlier stages drew."""
    on = "evaluation"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "budget", _share(self.budget))
        of = (self.of,) if isinstance(self.of, str) else self.of
        object.__setattr__(self, "of", None if of is None else tuple(of))
        if self.of is not None and not self.of:
            raise ValueError("Forgetting: of: expected names of evaluation sets or None, got an empty list")
        if self.action not in _ACTIONS:
            raise ValueError(f"Forgetting: action: expected one of {', '.join(_ACTIONS)}, got {self.action!r}")
        if not 0 < self.factor < 1:
            raise ValueError(f"Forgetting: factor: expected a number between 0 and 1, got {self.factor}")
        if not 0 <= self.floor < 1:
            raise ValueError(f"Forgetting: floor: expected at least 0 and below 1, got {self.floor}")
        if self.patience < 1:
            raise ValueError(f"Forgetting: patience: expected at least 1, got {self.patience}")
        if not 0 < self.share <= self.most < 1:
            raise ValueError(
                f"Forgetting: share: expected numbers above 0 and below 1, share at most most; got share={self.share}, "
                f"most={self.most}"
            )
        if self.source is not None and self.action != "replay":
            raise ValueError(f"Forgetting: source: it is what 'replay' draws from; leave it out with {self.action!r}")

    def __call__(self, history: History) -> Decision | None:
        rounds = self._rounds(history)
        own = [entry for entry in history.entries if entry.by == type(self).__name__ and entry.value is not None]
        acted = [entry for entry in own if (entry.kind == "replay") == self.replays]  # another gate may cut the rate
        since = max((entry.step for entry in acted), default=-1)
        outside = 0
        for step, (rise, _) in rounds:
            outside = 0 if rise <= self._budget or step <= since else outside + 1
        if not rounds or rounds[-1][0] <= since:
            return None
        if not outside:
            return Decision("keep", "") if self.keeps else None
        if outside < self.patience or (self.action == "alert" and outside > self.patience):
            return None
        return self._act(rounds[-1][1], history, acted)

    def _act(self, worst: tuple[float, str], history: History, acted: Sequence) -> Decision | None:
        reason, share = worst[1], 1.0
        if self.replays:
            return self._more(reason, acted[-1].value if acted else 0.0, history)
        for entry in acted:
            share *= entry.value
        share *= self.factor
        if self.action == "end":
            return Decision("end", reason)
        if self.action == "alert":
            return Decision("alert", reason)
        if share >= self.floor:
            cut = f"the learning rate is cut to {share:.3g} of its schedule"
            return Decision(self.action, f"{reason}; {cut}", self.factor)
        low = f"its rate is at the floor ({self.floor:.3g} of the schedule)"
        if self.keeps:
            return Decision("rollback", f"{reason}; {low}, so the stage ends here")
        return self._once(f"{reason}; {low}", history)

    def _more(self, reason: str, now: float, history: History) -> Decision | None:
        """Replay a first share of earlier data, or twice the present one."""
        if now >= self.most:
            return self._once(
                f"{reason}; {100 * now:.3g} % of the examples are replayed already, the most allowed", history
            )
        share = min(2 * now, self.most) if now else self.share
        return Decision(
            "replay", f"{reason}; {100 * share:.3g} % of the examples come from earlier data from here on", share
        )

    def _once(self, reason: str, history: History) -> Decision | None:
        told = [e for e in history.entries if e.by == type(self).__name__ and e.kind == "alert"]
        return None if told else Decision("alert", reason)

    def at_end(self, history: History) -> Decision | None:
        """Judge the stage's last evaluation, whatever the patience: go back, or at least write an alert."""
        rounds = self._rounds(history)
        if not rounds or rounds[-1][1][0] <= self._budget:
            return None
        return Decision("rollback" if self.keeps else "alert", f"{rounds[-1][1][1]} as the stage ends")

    @property
    def _budget(self) -> float:
        assert isinstance(self.budget, float)
        return self.budget

    def _rounds(self, history: History) -> list[tuple[int, tuple[float, str]]]:
        """Return for each evaluation its step and the domain that rose most: by how much, and in words."""
        worst: dict[int, tuple[float, str]] = {}
        for name in self.of or history.earlier:
            start = history.before.get(f"eval_{name}_loss")
            if start is None:
                continue
            # Of two evaluations at one step the later one counts: the stage went back in between.
            losses = {log["step"]: log[key] for log in history.logs if (key := f"eval_{name}_loss") in log}
            for step, loss in losses.items():
                rise = _rise(loss, start)
                if step not in worst or rise > worst[step][0]:
                    worst[step] = (
                        rise,
                        (
                            f"{name}: loss {loss:.4g} is {100 * rise:.3g} % above {start:.4g} at the boundary (budget "
                            f"{100 * self._budget:.3g} %)"
                        ),
                    )
        return sorted(worst.items())


def _rise(loss: float, start: float) -> float:
    """Return the rise as a share of the start. NaN counts as an infinite rise."""
    rise = (loss - start) / abs(start) if start else float(loss > 0)
    return rise if rise == rise else float("inf")


def _share(budget: float | str) -> float:
    """Read a share.

    >>> _share("5%"), _share("2.5 %"), _share(0.1)
    (0.05, 0.025, 0.1)
    """
    try:
        text = str(budget).strip()
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = float("nan")
    if isinstance(budget, bool) or not 0 <= found <= 1:
        raise ValueError(f"Forgetting: budget: expected a share of the loss such as '5%' or 0.05, got {budget!r}")
    return found
