"""A stage's last evaluation of all its sets: whether it was of the weights that the stage ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hf_stages.losses.objective.stage_losses import NAME
from hf_stages.models.state_checksum import state_checksum


class LastEvaluation:
    """What was measured within the stage, and the print of each model that was measured: one for each set.

    The model may change behind an evaluation: a strength comes to its end, a gate goes back, the best checkpoint is
    loaded, a callback puts averaged weights in. So nothing is taken over but what was measured on the very same model.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.metrics: dict[str, float] = {}
        self.prints: list[str] = []
        self._open = False

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """One evaluation of all sets; others (a callback's of its own) are not noted."""
        self.metrics, self.prints, self._open = {}, [], True
        try:
            yield
        finally:
            self._open = False

    def saw(self) -> None:
        """A set was measured; its callbacks come after this."""
        if self._open:
            self.prints.append(self._print())

    def keep(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = {k: v for k, v in metrics.items() if k.startswith("eval_") and isinstance(v, int | float)}

    def holds(self) -> bool:
        """Whether the model is, on this rank, the one that the metrics were measured on."""
        return bool(self.prints) and set(self.prints) == {self._print()}

    def _print(self) -> str:
        return state_checksum(self.trainer.model, leave_out=NAME)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "prints": self.prints}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.metrics, self.prints = dict(state["metrics"]), list(state["prints"])
