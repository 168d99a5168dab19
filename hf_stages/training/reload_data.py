"""What a stage reads, where what comes next may change within it: the loader has fetched ahead, and begins anew.

Just as in a run that is resumed at this update: rows, their random transforms and their collation are functions of their
positions, so a loader that begins here gives what an uncut one would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from hf_stages.core.randomness import preserve_random_state


class Refetch:
    """Of one StageRun, which it serves."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self._loader: Any = None
        """The newest one that was made here; None while Trainer's is good."""
        self._batches: Iterator[Any] | None = None
        self._stale = False

    def change(self) -> None:
        """The data are bound to a new event. Collective: every rank does it after the same update."""
        self.run.data.replay(self.run.steering.replayed())
        self._stale = True

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """An epoch begins, with its place set; Trainer makes the iterator."""
        self._batches = None
        self._loader = self._loader if self._loader is not None else kwargs["train_dataloader"]
        if self._stale:
            self._renew()
        return {**kwargs, "train_dataloader": self._loader}

    def take(self, theirs: Iterator[Any], count: int) -> list[Any]:
        """The micro-batches of the next update; ``theirs`` is the iterator that Trainer made."""
        with preserve_random_state():
            if self._stale:
                _close(self._batches if self._batches is not None else theirs)
                self._renew()
                self._batches = iter(self._loader)
            return list(islice(self._batches if self._batches is not None else theirs, count))

    def _renew(self) -> None:
        """A loader that stands at the next update."""
        with preserve_random_state():
            _stop(self._loader)
            self._loader = self.run.trainer.get_train_dataloader()
            self.run.data_at_next()
        self._stale = False


def _close(batches: Any) -> None:
    """What was fetched ahead is dropped."""
    if hasattr(batches, "close"):
        batches.close()


def _stop(loader: Any) -> None:
    """Persistent workers would stay, and hold the data as they were."""
    if hasattr(loader, "end"):
        with suppress(ValueError):  # one that was read to its end has said so
            loader.end()  # accelerate counts it among those that are being read
    for one in (loader, getattr(loader, "base_dataloader", loader)):
        if getattr(one, "_iterator", None) is not None:
            one._iterator = None
