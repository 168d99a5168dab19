"""How a staged run ends when it does not end well."""


class StageStopped(RuntimeError):
    """An expectation was not met: the run stopped before the next stage, its finished stages whole."""


class RunInterrupted(RuntimeError):
    """The run was asked to stop; it saved a checkpoint and can be resumed."""
