"""Exceptions that end a run early on purpose. Both leave a folder from which the run can be resumed."""

from __future__ import annotations

from typing import Any


class StageStopped(RuntimeError):
    """A gate (``Expect``) ended the run before the next stage.

    The finished stage's folder is kept: look at it, widen or remove the gate, then resume.
    """

    def __init__(self, message: str, gate: Any = None) -> None:
        super().__init__(message)
        self.gate = gate
        """The gate that answered ``stop``."""


class RunInterrupted(RuntimeError):
    """The run was asked to stop (Ctrl-C, or SIGTERM from a cluster). A checkpoint of the last update was written."""
