"""Collators learn how far the batch at hand is: the same for any workers, prefetching, accumulation, ranks, and after a
cut."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Curve, Linear
from hf_stages.core.stops import RunInterrupted
from hf_stages.data import DynamicMLM, Lengths, Packed
from hf_stages.data.collators.base import BaseCollator
from hf_stages.data.collators.progress import ProgressDataset, ProgressSampler, note_progress, take_progress
from hf_stages.data.stage_collator import prepare_collator
from tests.support import tiny


@dataclass(frozen=True)
class Seen(BaseCollator):
    """Writes the progress it is given into the batch."""

    share: float | Curve = field(default=Linear(0, 1))

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "position_ids": torch.full_like(ids, round(1000 * self.share))}


class Watch(StagedTrainer):
    """Keeps (training, progress) of each batch."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("seen", []).append((model.training, int(inputs["position_ids"][0, 0])))
        inputs = {key: value for key, value in inputs.items() if key != "position_ids"}
        return super().compute_loss(model, inputs, *args, **kwargs)


def trainer(
    out, kind: type = Watch, *, data: Any = None, collator: Any = None, until: str = "10 steps", **args: Any
) -> Any:
    given = {
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    given |= {"eval_strategy": "no", "logging_strategy": "no", "max_steps": 1}
    return kind(
        tiny.llama(vocab_size=260),
        TrainingArguments(str(out), **{**given, **args}),
        stages=[Stage("one", until)],
        train_dataset=tiny.lm_data(14) if data is None else data,
        eval_dataset=tiny.lm_data(4),
        data_collator=collator if collator is not None else Seen(),
        processing_class=None,
    )


def training(made: Any) -> list[int]:
    made.train()
    return [t for training, t in made.seen if training]


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_is_that_of_the_update(tmp_path, workers: int) -> None:
    """14 rows by 2 x 2: an epoch has 4 updates, the last of them half."""
    made = trainer(tmp_path, gradient_accumulation_steps=2, dataloader_num_workers=workers)
    updates = [0, 0, 100, 100, 200, 200, 300]
    assert training(made) == [*updates, *(t + 400 for t in updates), 800, 800, 900, 900]


def test_evaluation_stands_at_the_end(tmp_path) -> None:
    made = trainer(tmp_path, eval_strategy="steps", eval_steps=3)
    assert training(made) == [100 * i for i in range(10)]
    assert {t for training, t in made.seen if not training} == {1000}
    made.seen.clear()
    made.evaluate()
    assert {t for _, t in made.seen} == {1000}


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_does_not_move_it(tmp_path, stream: bool) -> None:
    data = tiny.lm_data(14).to_iterable_dataset() if stream else tiny.lm_data(14)
    whole = training(trainer(tmp_path / "whole", data=data, gradient_accumulation_steps=2))
    made = trainer(tmp_path / "cut", data=data, gradient_accumulation_steps=2)
    inner = made.training_step

    def stop(*args: Any, **kwargs: Any) -> Any:
        if made.state.global_step == 5:
            made.request_stop("a test")
        return inner(*args, **kwargs)

    made.training_step = stop
    with pytest.raises(RunInterrupted):
        made.train()
    before = [t for training, t in made.seen if training]
    again = trainer(tmp_path / "cut", data=data, gradient_accumulation_steps=2)
    again.train(resume_from_checkpoint=True)
    assert 0 < len(before) < len(whole)
    assert [*before, *(t for training, t in again.seen if training)] == whole


def test_ranks_see_the_same() -> None:
    """Two ranks' batches of one update, as accelerate deals them out."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    class Order(list):
        epoch, start = 1, 4

    place = lambda epoch, position: (epoch * 5 + position // 8) / 100  # noqa: E731
    sampler = ProgressSampler(Order(range(4, 40)), place)
    ranks = [list(BatchSamplerShard(BatchSampler(sampler, 2, False), 2, rank)) for rank in range(2)]
    firsts = [[batch[0][0] for batch in batches] for batches in ranks]
    assert firsts[0] == firsts[1] == [(5 + p // 8) / 100 for p in range(4, 40, 4)]
    assert sorted(index for batches in ranks for batch in batches for _, index in batch) == list(range(4, 40))


def test_it_is_taken_once() -> None:
    class Rows:
        def __len__(self):
            return 3

        def __getitems__(self, indices):
            return indices

    assert ProgressDataset(Rows()).__getitems__([(0.25, 1), (0.5, 2)]) == [1, 2]
    assert (take_progress(), take_progress()) == (0.25, None)
    note_progress(0.5)
    at_work = prepare_collator(Seen(), None, None)
    rows = [{"input_ids": [3]}]
    assert [int(at_work(rows)["position_ids"]) for _ in range(2)] == [500, 1000]


def test_lengths_grow_and_packing_and_masks_compose(tmp_path) -> None:
    """Rows of a run are as declared; the same collator by hand stands at the end."""
    widths = []

    class Wide(StagedTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if model.training:
                widths.append(inputs["input_ids"].shape[1])
            return super().compute_loss(model, inputs, *args, **kwargs)

    grow = Lengths(Linear(4, 16), longer="split")
    trainer(tmp_path / "a", Wide, collator=grow, until="6 steps").train()
    assert widths == [round(4 + 12 * t / 6) for t in range(6)]
    widths.clear()
    trainer(tmp_path / "b", Wide, collator=Packed(Linear(16, 64)), until="4 steps").train()
    assert widths == [16, 16, 32, 32]  # two rows of 16 tokens


def test_a_run_with_packed_rows_learns_as_one_without(tmp_path) -> None:
    """Weights after a few updates: packed against padded, one example of another length each."""
    ids = [
        torch.randint(3, tiny.VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(2, 16)
    ]
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    weights, tokens = [], []
    for name, collator in {"packed": Packed(16), "padded": Lengths(16)}.items():
        made = trainer(
            tmp_path / name,
            StagedTrainer,
            data=data,
            collator=collator,
            until="1 epochs",
            optim="sgd",
            learning_rate=0.5,
            per_device_train_batch_size=5,
        )
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
        tokens.append(json.loads((tmp_path / name / "01-one" / "stage.json").read_text())["tokens"])
    assert tokens[0] == tokens[1] == sum(range(2, 16))
    start = torch.cat([p.detach().flatten() for p in tiny.llama(vocab_size=260).parameters()])
    assert (weights[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)


def test_masks_are_keyed(tmp_path) -> None:
    """Same run, any workers: the same masks; evaluation masks alike each time."""
    batches: dict[int, list] = {}
    for workers in (0, 2):
        seen = batches[workers] = []

        class Keep(StagedTrainer):
            def compute_loss(self, model, inputs, *args, seen=seen, **kwargs):
                seen.append((model.training, inputs["labels"].clone()))
                return super().compute_loss(model, inputs, *args, **kwargs)

        data = tiny.lm_data(8).remove_columns("labels")
        masking = DynamicMLM(0.5, tokenizer=tiny.tokenizer())
        made = trainer(
            tmp_path / str(workers), Keep, data=data, collator=masking, until="8 steps", dataloader_num_workers=workers
        )
        made.train()
        made.evaluate(data)
        made.evaluate(data)
    assert len(batches[0]) == len(batches[2])
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(batches[0], batches[2], strict=True))
    evaluated = [labels for training, labels in batches[0] if not training]
    assert torch.equal(evaluated[-1], evaluated[-2])
    trained = [labels for training, labels in batches[0] if training]
    assert not torch.equal(torch.cat(trained[:4]).sort().values, torch.cat(trained[4:]).sort().values)


def test_plain_trainer_stands_at_the_end(tmp_path) -> None:
    args = TrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    collator = Packed(Linear(16, 32)).build(None, tiny.llama())
    Trainer(tiny.llama(), args, train_dataset=tiny.lm_data(8), data_collator=collator).train()
    batch = collator([{"input_ids": [5] * 16}] * 2)
    assert batch["input_ids"].shape == (1, 32)  # the curve's end: its beginning would take two rows of 16
