"""Tells those whom a run notifies what its gates decide. A run never fails by a message that is not delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import logging

from hf_stages.core.ledger import Entry
from hf_stages.gates.notify.base import Alert

logger = logging.get_logger(__name__)
_GIVEN_UP_AFTER = 3
"""Failures in a row after which somebody is told no more, so that a dead URL does not cost its timeout each time."""


class Notifications:
    """Hears each new entry of the ledger, and hands alerts on. Nobody but the main process tells anybody.

    >>> told = []
    >>> Notifications([told.append], run="out")(Entry(9, "code", "alert", "the loss doubled", by="Divergence"))
    >>> told[0].title
    'alert in stage code at step 9 (Divergence)'

    Args:
        told: Functions of an alert, or parts such as ``Webhook``.
        run: What the run is called in a message.
    """

    def __init__(self, told: Sequence[Callable[[Alert], Any]], run: str) -> None:
        self.told, self.run = tuple(told), run
        self._failures = [0] * len(self.told)

    def check(self) -> None:
        """Raise ValueError where nothing could be delivered, before the first step."""
        for index, one in enumerate(self.told):
            try:
                getattr(one, "check", lambda: None)()
            except ValueError as error:
                raise ValueError(f"notify[{index}]: {error}") from error

    def __call__(self, entry: Entry) -> None:
        if (alert := Alert.of(entry, self.run)) is None:
            return
        for index, one in enumerate(self.told):
            if self._failures[index] >= _GIVEN_UP_AFTER:
                continue
            try:
                one(alert)
                self._failures[index] = 0
            except Exception as error:  # a message is not worth a run
                self._warn(index, one, error)

    def _warn(self, index: int, one: Any, error: Exception) -> None:
        self._failures[index] += 1
        name = getattr(one, "__name__", type(one).__name__)
        if self._failures[index] == 1:
            logger.warning(f"notify: {name}: an alert was not delivered: {error or type(error).__name__}")
        if self._failures[index] == _GIVEN_UP_AFTER:
            logger.warning(f"notify: {name}: {_GIVEN_UP_AFTER} alerts in a row were not delivered; it gets no more")
