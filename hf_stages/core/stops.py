"""How a run ends early on purpose. Both leave a folder that the run can be resumed from."""

from __future__ import annotations


class StageStopped(RuntimeError):
    """A gate (``Expect``) ended the run before the next stage.

    The finished stage's folder is kept: look at it, widen or remove the gate, then resume.
    """


class RunInterrupted(RuntimeError):
    """The run was asked to stop (Ctrl-C, a cluster's SIGTERM); a checkpoint of the last update was written."""
