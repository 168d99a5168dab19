"""The rows of an update are found again: source and number of each, in epochs, mixtures, streams, after a resume."""

from __future__ import annotations

import pytest

from hf_stages.core.stops import RunInterrupted
from hf_stages.data import Mixture
from tests.support.compared_rows import DATA, MIXED, RAMP, Compared, trainer


@pytest.mark.parametrize("name", ["ramp", "tokens", "lengths", pytest.param("nested", marks=pytest.mark.slow)])
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
