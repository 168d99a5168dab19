"""The data of a stage while it trains: what Trainer's loader reads, from which position on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_stages.core.batch import SOURCE
from hf_stages.core.randomness import preserve_random_state
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.drawing.drawn_rows import DrawnRows, DrawnStream, OneByOnePositions, Positions, PositionsWithRows
from hf_stages.data.drawing.endless_stream import EndlessStream
from hf_stages.data.drawing.order import SeededDataset, StageSampler, order_of_sampler, sequential, shuffled
from hf_stages.data.drawing.replayed import Events
from hf_stages.planning.measure_data import sampling_strategy
from hf_stages.planning.plan import PlannedStage

ORDERS = "orders"
"""The folder in a run's that keeps the orders of scored curricula."""


class StageData:
    """A dataset, a stream or a blend, seen from any epoch and update on."""

    def __init__(self, dataset: Any, planned: PlannedStage, args: TrainingArguments, seed: int) -> None:
        self.dataset, self.size, self.args, self.seed = dataset, planned.size, args, seed
        self.stream: EndlessStream | DrawnStream | None = None
        self.sampler: StageSampler | Positions | None = None
        self.keyed: SeededDataset | None = None
        if isinstance(dataset, Blend):
            draws = planned.steps * self.size.global_batch
            shuffle = sampling_strategy(args) != "sequential"
            dataset.bind(draws, seed, shuffle=shuffle, folder=Path(args.output_dir) / ORDERS)

    @property
    def blend(self) -> Blend | None:
        return self.dataset if isinstance(self.dataset, Blend) else None

    def view(self, trainer: Any) -> Any:
        """Make what stands in for the dataset while Trainer makes its loader."""

        def few_columns(dataset: Any) -> Any:
            if not hasattr(dataset, "column_names"):
                return (
                    dataset.with_dataset(few_columns(dataset.dataset)) if hasattr(dataset, "with_dataset") else dataset
                )
            return trainer._remove_unused_columns(dataset, description="Training")

        if (blend := self.blend) is not None:
            with preserve_random_state():
                for leaf in blend.leaves:
                    leaf.sorted_rows()  # here, not in a worker: it may be a model that scores
            if blend.streams:
                self.stream = DrawnStream(blend, self.seed, SOURCE)
                return self.stream
            for leaf in blend.leaves:
                leaf.dataset_for_model = few_columns(leaf.dataset)
            return DrawnRows(blend, self.seed, self.epoch_length, SOURCE)
        if self.size.examples is None:
            self.stream = EndlessStream(self.dataset, self.seed)
            return self.stream
        dataset = few_columns(self.dataset) if hasattr(self.dataset, "column_names") else self.dataset
        self.keyed = SeededDataset(dataset, self.seed)
        return self.keyed

    @property
    def epoch_length(self) -> int:
        """How many positions an epoch of a blend has."""
        return (self.size.updates_per_epoch or 0) * self.size.global_batch

    def make_sampler(self, theirs: Any) -> StageSampler | Positions:
        """Make Trainer's sampling strategy a function of (seed, epoch, position)."""
        if (blend := self.blend) is not None:
            if self.sampler is None:  # else it came with the state of a checkpoint
                every, length = self.size.global_batch, self.epoch_length
                self.sampler = OneByOnePositions(length, blend, every) if blend.one_by_one else Positions(length)
            if blend.replays and not blend.one_by_one:
                self.sampler = PositionsWithRows(self.epoch_length, blend)
            return self.sampler
        n = self.size.examples
        assert n is not None  # Trainer asks for a sampler only where there is a length
        strategy = sampling_strategy(self.args)
        if strategy == "random":
            order = shuffled(n, self.seed)
        else:
            order = sequential(n) if strategy == "sequential" else order_of_sampler(theirs(self.dataset), self.seed)
        rounds = self.size.batch * self.size.world if self.size.world > 1 and not self.size.drop_last else 1
        self.sampler = StageSampler(n, order, rounds=rounds)
        return self.sampler

    def go_to(self, epoch: int, done: int) -> None:
        """Go to a place in an epoch: ``done`` of its updates were trained."""
        if self.stream is not None:
            self.stream.start = done * self.size.global_batch
        elif self.sampler is not None:
            self.sampler.at(epoch, done * self.size.global_batch)
            if self.keyed is not None:
                self.keyed.epoch[0] = epoch

    def replay(self, events: Events) -> None:
        """Let a gate's decisions to replay change what is drawn."""
        if self.blend is not None and self.blend.replays:
            self.blend.replay(events)

    # ---- what survives a cut -----------------------------------------------------------------------------------------

    def state_dict(self, steps: int) -> dict[str, Any] | None:
        """Give the state after the update that was last trained, whatever the loader has fetched since.

        None where the position alone says what comes next.
        """
        if not isinstance(self.sampler, OneByOnePositions):
            return None
        return self.sampler.states[steps * self.size.global_batch]

    def load_state_dict(self, state: Mapping[str, Any] | None, steps: int) -> None:
        if state is None:
            return
        sampler = self.make_sampler(None)
        assert isinstance(sampler, OneByOnePositions)
        sampler.states = {steps * self.size.global_batch: dict(state)}
