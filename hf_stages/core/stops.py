"""Exceptions that end a run early on purpose. Both leave a folder from which the run can be resumed."""

from __future__ import annotations


class StageStopped(RuntimeError):
    """A gate (``Expect``) ended the run before the next stage.

    The finished stage's folder is kept: look at it, widen or remove the gate, then resume.
    """


class RunInterrupted(RuntimeError):
    """The run was asked to stop (Ctrl-C, or SIGTERM from a cluster). A checkpoint of the last update was written."""
