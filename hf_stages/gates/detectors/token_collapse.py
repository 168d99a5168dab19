"""Find that the hidden states of all tokens have become alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.gates.detectors.stretches import is_flat, last_stretch, length_of

_ADVICE = "a lower learning rate or a longer warmup, norms with weights, a concatenated input of a recurrent core"


@dataclass(frozen=True)
class TokenCollapse(Detector):
    """Alerts where the token correlation stays high, and acts where it stays higher for longer and the loss is flat.

    A model that is new comes near 1 in its first updates, as it learns how often tokens are, and some healthy runs
    take 150 updates to recover; those end in an alert and no action.

    >>> logs = [{"step": step, "token_correlation": 0.97, "loss": 6.0} for step in range(0, 310, 10)]
    >>> TokenCollapse()(History(step=300, logs=logs)).reason[:76]
    'the hidden states of all tokens have become alike, and the loss no longer fa'
    """

    metric: str = "token_correlation"
    """The correlation to read, such as ``token_correlation_layer_3``."""
    warn: float = 0.9
    """Above this correlation for ``warn_for`` updates it alerts."""
    warn_for: int = 100
    """Updates that the correlation must stay above ``warn``. Small language models pass it by for 30 to 60 updates."""
    collapsed: float = 0.95
    """Above this correlation for ``collapsed_for`` updates, with a flat loss, the first action is taken."""
    collapsed_for: int = 300
    """Updates that the correlation must stay above ``collapsed``."""
    flat: float = 0.02
    """The loss is flat where it falls by less than this share from the first half of the last ``collapsed_for`` updates
    to the second."""
    relative: bool = False
    """True: the limits count from the stage's first value (0.9 is nine tenths of the way from there to 1); for a
    pretrained model whose correlation is high from the start."""
    cooldown: int = field(default=1000, kw_only=True)
    """After this many updates without an alert, ``then`` begins with its first action again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.warn <= self.collapsed < 1:
            raise ValueError(
                f"TokenCollapse: warn: expected 0 < warn <= collapsed < 1, got warn={self.warn}, "
                f"collapsed={self.collapsed}"
            )

    def find(self, history: History) -> Finding | None:
        warned = last_stretch(history.newest(self.metric), self._is_above(self.warn, history))
        if len(warned) < 2:
            return None
        high = last_stretch(reversed(warned), self._is_above(self.collapsed, history))
        # The newest of them alone: a loss that fell as the tokens collapsed would hide for long that it falls no more.
        since = max(high[-1][0] - self.collapsed_for, high[0][0]) if high else 0
        losses = [loss for _, loss in takewhile(lambda log: log[0] >= since, history.newest("loss"))][::-1]
        numbers = {self.metric: warned[-1][1]}
        if len(high) > 2 and length_of(high) >= self.collapsed_for and is_flat(losses, least_fall=self.flat):
            what = "the hidden states of all tokens have become alike, and the loss no longer falls"
            return Finding(what, {**numbers, "for updates": length_of(high), **_last(losses)}, _ADVICE)
        if length_of(warned) >= self.warn_for:
            what = "the hidden states of all tokens are becoming alike"
            return Finding(what, {**numbers, "for updates": length_of(warned)}, _ADVICE, mild=True)
        return None

    def _is_above(self, limit: float, history: History) -> Callable[[float], bool]:
        values = (log[self.metric] for log in history.logs if self.metric in log)
        first = next(values, 0.0) if self.relative else 0.0
        return lambda value: value > first + limit * (1 - first)


def _last(losses: list[float]) -> dict[str, float]:
    return {"loss": losses[-1]} if losses else {}
