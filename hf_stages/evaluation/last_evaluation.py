"""A stage's last evaluation of all its sets, and whether it was of the weights that the stage ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hf_stages.losses.objective.stage_losses import NAME
from hf_stages.models.state_checksum import state_checksum


class LastEvaluation:
    """Holds what was measured within the stage, and a checksum of the weights that each set was measured on.

    The model may change behind an evaluation: a strength comes to its end, a gate goes back, the best checkpoint is
    loaded, a callback puts averaged weights in. So nothing is taken over but what was measured on the very same model.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.metrics: dict[str, float] = {}
        self.checksums: list[str] = []
        self._open = False

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Note the evaluation of all sets within this block; others (a callback's own) are not noted."""
        self.metrics, self.checksums, self._open = {}, [], True
        try:
            yield
        finally:
            self._open = False

    def set_measured(self) -> None:
        """Note the weights that a set was measured on; callbacks, which may change them, come after this."""
        if self._open:
            self.checksums.append(self._checksum())

    def store(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = {k: v for k, v in metrics.items() if k.startswith("eval_") and isinstance(v, int | float)}

    def is_current(self) -> bool:
        """Whether the model is, on this rank, the one that the metrics were measured on."""
        return bool(self.checksums) and set(self.checksums) == {self._checksum()}

    def _checksum(self) -> str:
        return state_checksum(self.trainer.model, leave_out=NAME)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "prints": self.checksums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.metrics, self.checksums = dict(state["metrics"]), list(state["prints"])
