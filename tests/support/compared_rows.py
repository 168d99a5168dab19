"""A trainer that compares the rows that are found for each update with those that came."""

from __future__ import annotations

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
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
