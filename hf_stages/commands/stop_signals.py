"""Ctrl-C and a cluster's SIGTERM: the first asks for a checkpoint and an orderly end, the second ends at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Within it, signals call ``ask(reason)``; ``received`` is the first signal's number, or None.

    >>> with StopOnSignal(lambda reason: None) as stop:
    ...     stop.received
    """

    def __init__(self, ask: Callable[[str], Any]) -> None:
        self.ask = ask
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._before = {number: signal.signal(number, self._handle) for number in _WATCHED}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        text = f"\n{signal.Signals(number).name}: writing a checkpoint after this update; once more ends at once\n"
        os.write(2, text.encode())  # print() may be the very call that the signal cut into
        self.ask("interrupted")
