"""What Trainer's loop reads in a stage: its loader's dataset and sampler, epoch by epoch, update by update.

What comes next may change within a stage, where a gate replays earlier data. The loader has fetched ahead by then, so a
new one is made. Rows, their random transforms and their collation depend on their positions alone: a loader that begins
at some update gives what an uncut one would have given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from hf_stages.core.randomness import preserve_random_state
from hf_stages.data.collators.progress import ProgressDataset, ProgressSampler, ProgressStream
from hf_stages.data.stage_collator import reads_progress
from hf_stages.training.stage.data_position import data_position
from hf_stages.training.stage.kept_updates import KeptUpdates
from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.source_counts import SourceCounts
from hf_stages.training.stage.stage_data import StageData
from hf_stages.training.stage.stage_notes import StageNotes


class StageFeed:
    """Gives Trainer's loop the stage's data from the update on that comes next."""

    def __init__(self, trainer: Any, data: StageData, progress: Progress, notes: StageNotes) -> None:
        self.trainer, self.data, self.progress, self.notes = trainer, data, progress, notes
        self.drawn = SourceCounts(data.blend, progress.planned.steps, progress.planned.size.global_batch)
        """How much was drawn of each source."""
        # A gate that judges updates hears of one while the next is at hand.
        self.newest = KeptUpdates(2 if any(gate.on == "update" for gate in progress.planned.stage.gates) else 1)
        """What the newest updates train on, to find the rows of one that was bad."""
        self._loader: Any = None
        """The newest loader that was made here; None while Trainer's is good."""
        self._batches: Iterator[Any] | None = None
        self._changed = False
        """Whether what the loader has fetched is no longer what comes next."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Show Trainer the stage's view of the dataset while it builds its loader."""
        view = self.data.view(self.trainer)
        if reads_progress(self.trainer.data_collator):
            streams = view is self.data.stream
            view = ProgressStream(view, self.progress.t_of_example) if streams else ProgressDataset(view)
        self.trainer.train_dataset = view
        try:
            yield
        finally:
            self.trainer.train_dataset = self.data.dataset

    def make_sampler(self, theirs: Any) -> Any:
        sampler = self.data.make_sampler(theirs)
        placed = reads_progress(self.trainer.data_collator)
        return ProgressSampler(sampler, self.progress.t_of_example) if placed else sampler

    def enter_epoch(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Set the data to the epoch that Trainer names. Gives back the arguments that Trainer runs it with."""
        kwargs = self.progress.epoch.enter(kwargs)
        self._go_to_next_update()
        self._batches = None  # Trainer makes the iterator
        self._loader = self._loader if self._loader is not None else kwargs["train_dataloader"]
        if self._changed:
            self._renew()
        return {**kwargs, "train_dataloader": self._loader}

    def take(self, theirs: Iterator[Any], count: int) -> list[Any]:
        """Take the micro-batches of the next update; ``theirs`` is the iterator that Trainer made."""
        with preserve_random_state():
            if self._changed:
                _close(self._batches if self._batches is not None else theirs)
                self._renew()
                self._batches = iter(self._loader)
            taken = list(islice(self._batches if self._batches is not None else theirs, count))
            if not taken and self._returns:  # rows that come again: their epoch ends before Trainer's
                self._renew()
                self._batches = iter(self._loader)
                taken = list(islice(self._batches, count))
        self.newest.keep(self.progress.steps + 1, *self.place, self.progress.t, taken)
        return taken

    @property
    def place(self) -> tuple[int, int]:
        """The epoch that the next update reads from, and how many updates of it come before."""
        epoch, returns = self.progress.epoch, self._returns
        if not returns:
            return epoch.number, epoch.done
        return divmod(data_position(epoch.number * epoch.updates + epoch.done, returns), epoch.updates)

    @property
    def _returns(self) -> list[tuple[int, int]]:
        """After which of the stage's updates its data went back, and to behind which."""
        first = self.progress.first_step
        return [(e.step - first, e.again_from) for e in self.notes.entries("rollback") if e.again_from is not None]

    def come_again(self) -> None:
        """A gate has just gone back, and wants the rows since then again. Collective, as ``replay_from_now``."""
        self._changed = True

    def replay_from_now(self) -> None:
        """A gate has just decided to replay earlier data. Collective: every rank does it after the same update."""
        self.bind_replays()
        self._changed = True

    def bind_replays(self) -> None:
        """Let decisions to replay change what is drawn, each by its position in examples and its share."""
        first, batch = self.progress.first_step, self.progress.planned.size.global_batch
        events = tuple(((entry.step - first) * batch, entry.value) for entry in self.notes.entries("replay"))
        self.data.replay(events)  # type: ignore[arg-type]

    def _go_to_next_update(self) -> None:
        self.data.go_to(*self.place)

    def _renew(self) -> None:
        """Make a loader that stands at the next update."""
        with preserve_random_state():
            _stop(self._loader)
            self._loader = self.trainer.get_train_dataloader()
            self._go_to_next_update()
        self._changed = False


def _close(batches: Any) -> None:
    """Drop what was fetched ahead."""
    if hasattr(batches, "close"):
        batches.close()


def _stop(loader: Any) -> None:
    """Stop a loader's persistent workers, which would stay and hold the data as they were."""
    if hasattr(loader, "end"):
        with suppress(ValueError):  # one that was read to its end has said so
            loader.end()  # accelerate counts it among those that are being read
    for one in (loader, getattr(loader, "base_dataloader", loader)):
        if getattr(one, "_iterator", None) is not None:
            one._iterator = None
