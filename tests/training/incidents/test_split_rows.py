"""A micro-batch is taken apart where its rows can stand alone, and stays whole where they cannot."""

from __future__ import annotations

import torch

from hf_stages.core.batch import DRAWN
from hf_stages.training.incidents.split_rows import count_tokens_of, split_rows


def test_columns_of_one_row_each_are_split_and_others_are_shared():
    batch = {"input_ids": torch.arange(6).view(3, 2), "names": ["a", "b", "c"], "scale": torch.tensor(2.0), "n": 3}
    found = split_rows({**batch, DRAWN: torch.zeros(5, 2)}, "xyz")
    assert [row.places for row in found] == [("x",), ("y",), ("z",)]
    assert found[1].columns["input_ids"].tolist() == [[2, 3]]
    assert found[1].columns["names"] == ["b"]
    assert (found[1].columns["scale"], found[1].columns["n"]) == (2.0, 3)
    assert DRAWN not in found[0].columns


def test_pairs_stay_together():
    found = split_rows({"input_ids": torch.arange(8).view(4, 2)}, "xy", in_pairs=True)
    assert [(row.first, row.columns["input_ids"][:, 0].tolist(), row.places) for row in found] == [
        (0, [0, 2], ("x",)),
        (2, [4, 6], ("y",)),
    ]


def test_a_packed_row_lists_all_examples_of_its_micro_batch():
    found = split_rows({"input_ids": torch.zeros(2, 9)}, "uvwxy")
    assert [row.places for row in found] == [tuple("uvwxy")] * 2


def test_a_batch_whose_tensors_differ_in_rows_stays_whole():
    batch = {"input_ids": torch.zeros(2, 9), "pixel_values": torch.zeros(7, 3)}
    (row,) = split_rows(batch, "xy")
    assert row.columns.keys() == batch.keys()
    assert row.places == ("x", "y")


def test_tokens_are_counted_without_padding():
    ids = torch.ones(1, 5, dtype=torch.long)
    assert count_tokens_of({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}) == 3
    assert count_tokens_of({"input_ids": ids}) == 5
    assert count_tokens_of({"pixel_values": torch.zeros(1, 3)}) == 0
