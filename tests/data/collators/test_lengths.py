from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_stages.core.curves import Linear
from hf_stages.data import DynamicMLM, Lengths, Packed
from tests.support import tiny

ROWS = [{"input_ids": list(range(3, 3 + n)), "labels": list(range(3, 3 + n))} for n in (5, 2, 9)]


def test_truncate_split_error() -> None:
    cut = Lengths(4)(ROWS)
    assert cut["attention_mask"].sum(1).tolist() == [4, 2, 4]
    assert cut["labels"].tolist() == [[3, 4, 5, 6], [3, 4, -100, -100], [3, 4, 5, 6]]
    split = Lengths(4, longer="split")(ROWS)
    assert split["attention_mask"].sum(1).tolist() == [4, 1, 2, 4, 4, 1]
    assert split["input_ids"][split["attention_mask"].bool()].tolist() == [i for row in ROWS for i in row["input_ids"]]
    with pytest.raises(ValueError, match="an example of 5 tokens is longer than length=4"):
        Lengths(4, longer="error")(ROWS)


def test_it_grows() -> None:
    grows = Lengths(Linear(2, 9))
    assert [grows.at(t)(ROWS)["input_ids"].shape[1] for t in (0.0, 0.5, 1.0)] == [2, 6, 9]
    assert [Lengths(Linear(2, 9), steps_of=4).at(t)(ROWS)["input_ids"].shape[1] for t in (0.0, 0.5, 1.0)] == [4, 4, 8]


def test_widths() -> None:
    few = Lengths(9, widths=(16, 4))
    assert few(ROWS)["input_ids"].shape == (3, 16)
    assert few(ROWS[1:2])["input_ids"].shape == (1, 4)
    assert Lengths(9, steps_of=4)(ROWS)["input_ids"].shape == (3, 8)
    with pytest.raises(ValueError, match="expected one that holds 9 tokens"):
        Lengths(9, widths=(4, 8))(ROWS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_classification_keeps_its_labels_and_side(side: str) -> None:
    tokenizer = tiny.tokenizer(padding_side=side)
    rows = [{"input_ids": row["input_ids"], "label": i} for i, row in enumerate(ROWS)]
    batch = Lengths(6, DataCollatorWithPadding(tokenizer)).build(tokenizer)(rows)
    assert batch["labels"].tolist() == [0, 1, 2]
    ones = batch["attention_mask"][1].tolist()
    assert ones == ([0, 0, 0, 0, 1, 1] if side == "left" else [1, 1, 0, 0, 0, 0])
    assert torch.equal(batch["input_ids"][1][batch["attention_mask"][1].bool()], torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="expected 'truncate' or 'error' where labels is one per example"):
        Lengths(6, DataCollatorWithPadding(tokenizer), longer="split").build(tokenizer)(rows)
    with pytest.raises(ValueError, match="without a single token"):
        Lengths(6)([{"input_ids": []}])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": True}, "length: expected"),
        ({"length": Linear(4, 0)}, "length: expected at least 1"),
        ({"length": 4, "longer": "cut"}, "longer: expected one of"),
        ({"length": 4, "steps_of": 0}, "steps_of: expected"),
        ({"length": 4, "widths": (0,)}, "widths: expected"),
    ],
)
def test_bad_arguments(arguments, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Lengths(**arguments)


def test_text_is_a_curve_as_in_a_file() -> None:
    """The docstrings say so, and mixtures take it."""
    assert Lengths("Linear(4, 8)") == Lengths(Linear(4, 8))
    assert Packed("Linear(4, 8)") == Packed(Linear(4, 8))
    assert DynamicMLM(rate="Linear(0.3, 0.15)") == DynamicMLM(rate=Linear(0.3, 0.15))
    for wrong in (Lengths, Packed, DynamicMLM):
        with pytest.raises(ValueError, match=f"{wrong.__name__}: .*: unknown curve 'Lnear'"):
            wrong("Lnear(4, 8)")
