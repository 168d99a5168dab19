"""What a stage draws from: streams, budgets of tokens, epochs, workers; and its batch size."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.utils.data import IterableDataset

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.schedules import Fresh
from hf_stages.transforms import Freeze
from tests.support import tiny
from tests.support.runs import StopAt, rates, staged, summary


class Stream(IterableDataset):
    def __init__(self, rows: int):
        self.rows = list(tiny.lm_data(rows))
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from self.rows


def test_a_stream_goes_on_over_its_end(tmp_path):
    """Five rows, windows of 2 x 2: windows go across the pass's end, and nothing leaks."""
    stream = Stream(5)
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = staged(tmp_path, [Stage("a", "4 steps", train_dataset=stream)], args=args)
    trainer.train()
    assert stream.passes >= 4
    assert summary(tmp_path, "01-a")["tokens"] == 4 * 4 * 16


def test_token_budgets_are_kept_whatever_the_lengths(tmp_path):
    rows = [{"input_ids": list(range(3, 4 + n)), "labels": list(range(3, 4 + n))} for n in range(1, 33)]
    stages = [Stage("a", "400 tokens", schedule=Fresh(shape=Linear(1, 0)))]
    trainer = staged(tmp_path, stages, train_dataset=rows, args={"per_device_train_batch_size": 1})
    trainer.train()
    found = summary(tmp_path, "01-a")
    assert 400 <= found["tokens"] < 400 + 34
    assert found["lr_end"] == 0
    assert rates(trainer) == sorted(rates(trainer), reverse=True)


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own(tmp_path):
    seen: list[int] = []

    def collate(rows):
        seen.extend(row["id"] for row in rows)
        return {k: torch.tensor([row[k] for row in rows]) for k in ("input_ids", "labels")}

    data = tiny.lm_data(10).add_column("id", list(range(10)))
    args = {"remove_unused_columns": False}
    staged(tmp_path, [Stage("a", "2 epochs")], train_dataset=data, data_collator=collate, args=args).train()
    first, second = seen[:10], seen[10:20]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_data_drawn_at_random_are_the_same_after_a_resume(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            ids = torch.randint(3, tiny.VOCAB, (8,))
            return {"input_ids": ids, "labels": ids}

    args = {"save_strategy": "steps", "save_steps": 1}
    stages = [Stage("a", "4 steps", train_dataset=Noisy())]
    whole = staged(tmp_path / "whole", stages)
    whole.train()
    staged(tmp_path / "cut", stages, args=args, callbacks=[StopAt(2)]).train()
    again = staged(tmp_path / "cut", stages, args=args)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(t, whole.model.state_dict()[n]) for n, t in again.model.state_dict().items())


def test_a_stages_own_batch_size_is_its_own_alone(tmp_path):
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps", args={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}),
    ]
    trainer = staged(tmp_path, stages)
    trainer.train()
    assert summary(tmp_path, "01-a")["tokens"] == 2 * 4 * 16
    assert summary(tmp_path, "02-b")["tokens"] == 2 * 16 * 16
    assert trainer.args.per_device_train_batch_size == 4


@pytest.mark.slow
def test_persistent_workers_evaluate_on_all_rows_after_a_transform(tmp_path):
    seen = []

    def count(prediction):
        seen.append(len(prediction.label_ids))
        return {}

    workers = {"eval_strategy": "epoch", "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = staged(
        tmp_path, [Stage("a", "1 epochs", transforms=[Freeze(["bert.embeddings.*"])])], model=tiny.bert(), args=workers,
        train_dataset=tiny.class_data(8), eval_dataset=tiny.class_data(12, seed=1), compute_metrics=count,
    )  # fmt: skip
    trainer.train()
    del trainer
    gc.collect()  # the workers end with their loader
    assert set(seen) == {12}
