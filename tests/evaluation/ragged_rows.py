"""Rows of different lengths, some of whose tokens are no targets, and a collator that pads them."""

from __future__ import annotations

import random

import torch

from tests.support import tiny


def ragged(count: int, seed: int, vocabulary: int = tiny.VOCAB) -> list[dict]:
    """Rows of 2 to 20 tokens, of which some are masked; one row has no target at all."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(3, vocabulary) for _ in range(draw.randint(2, 20))]
        labels = [-100 if draw.random() < 0.2 else token for token in ids]
        rows.append({"input_ids": ids, "labels": labels})
    rows[count // 2]["labels"] = [-100] * len(rows[count // 2]["labels"])
    return rows


def padded(rows: list[dict], extra: int = 0) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows) + extra
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {k: torch.tensor([[*row[k], *[f] * (longest - len(row[k]))] for row in rows]) for k, f in fill.items()}
