"""The rows of an update are found again: source and number of each, in epochs, mixtures, streams, after a resume."""

from __future__ import annotations

import pytest

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.core.stops import RunInterrupted
from hf_stages.data import ByLength, Mixture, Replay
from hf_stages.training.incidents.row_places import places_of_micro_batch, row_of
from tests.support import tiny
from tests.workers.cases import Pad, arguments

DATA = {"a": tiny.lm_data(30, 8), "b": tiny.lm_data(12, 5, seed=1), "c": tiny.lm_data(40, 6, seed=2)}
RAMP = {"a": Linear(1, 0.3), "b": Linear(0, 0.7)}
MIXED = {
    "ramp": Mixture(RAMP),
    "tokens": Mixture(RAMP, weigh="tokens"),
    "nested": Replay("b", 0.2, into=Mixture({"a": 1, "c": Linear(0, 1)})),
    "lengths": Mixture({"a": 1, "b": 1}, {"b": ByLength("b", tokens=11)}),
}


class Compared(StagedTrainer):
    """Compares the rows that were found with those that came, update by update."""

    seen = 0
    stop_at = None

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        feed = self._stage.feed
        kept = feed.newest.find(feed.progress.steps + 1)
        for number, batch in enumerate(batches):
            places = places_of_micro_batch(feed.data, kept.epoch, kept.done, number, 0)
            came = [row[row > 0].tolist() for row in batch["input_ids"]]
            assert [self.row(place) for place in places] == came
            assert len({place.position for place in places}) <= len(places)
        self.seen += 1
        if self.stop_at == self.seen:
            self.request_stop("here")
        return batches, items

    def row(self, place):
        assert row_of(self._stage.feed.data, place)["input_ids"] == self.data(place.source)[place.index]["input_ids"]
        return self.data(place.source)[place.index]["input_ids"]

    def data(self, source):
        return DATA["a" if source is None else source]


def trainer(out, data, *, until="13 steps", sources=DATA, gates=(), **changes):
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 5, **changes}
    stages = [Stage("one", until, train_dataset=data, gates=gates)]
    return Compared(tiny.llama(), arguments(out, **args), stages=stages, train_dataset=sources, data_collator=Pad())


@pytest.mark.parametrize("name", MIXED)
def test_rows_of_a_mixture_are_found(tmp_path, name):
    found = trainer(tmp_path, MIXED[name])
    found.train()
    assert found.seen == 13


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_rows_of_one_dataset_are_found_in_each_epoch(tmp_path, strategy):
    """30 rows are 8 batches of 4, the last of 2: the last update of an epoch is smaller."""
    found = trainer(tmp_path, "a", until="3 epochs", train_sampling_strategy=strategy)
    found.train()
    assert found.seen == 12


@pytest.mark.parametrize("name", ["tokens"])
def test_rows_are_found_after_a_resume(tmp_path, name):
    cut = trainer(tmp_path, MIXED[name], save_strategy="steps", save_steps=20)
    cut.stop_at = 7
    with pytest.raises(RunInterrupted):
        cut.train()
    resumed = trainer(tmp_path, MIXED[name], save_strategy="steps", save_steps=20)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.seen == 13 - cut.seen


def test_rows_of_a_mixture_with_a_stream_have_sources_and_positions(tmp_path):
    class Sourced(Compared):
        def row(self, place):
            return list(self.data(place.source)[place.index % len(self.data(place.source))]["input_ids"])

    streams = {**DATA, "b": DATA["b"].to_iterable_dataset()}
    found = trainer(tmp_path, Mixture(RAMP), sources=streams)
    found.__class__ = Sourced
    found.train()
    assert found.seen == 13


def test_rows_of_a_stream_are_found_by_position(tmp_path):
    class Streamed(Compared):
        def row(self, place):
            return DATA["a"][place.position % 30]["input_ids"]

    found = trainer(tmp_path, "a", sources={"a": DATA["a"].to_iterable_dataset()})
    found.__class__ = Streamed
    found.train()
    assert found.seen == 13
