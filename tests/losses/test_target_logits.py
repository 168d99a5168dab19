"""Which positions count, and that their number depends neither on padding nor on its side."""

from __future__ import annotations

import pytest
import torch

from hf_stages.losses.target_logits import Targets

LENGTHS = (3, 6, 4)


def batch(*, side="right", extra=0, labels=True, masked=(), decoder=False):
    """Make ragged rows of tokens 5, 6, 7 ...; labels are the tokens, but -100 at ``masked`` places of each row."""
    width = max(LENGTHS) + extra
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    targets = torch.full((3, width), -100)
    for row, length in enumerate(LENGTHS):
        start = 0 if side == "right" else width - length
        ids[row, start : start + length] = torch.arange(5, 5 + length)
        mask[row, start : start + length] = 1
        targets[row, start : start + length] = ids[row, start : start + length]
        for at in masked:
            targets[row, start + at] = -100
    found = {"decoder_input_ids": ids} if decoder else {"input_ids": ids, "attention_mask": mask}
    return {**found, "labels": targets} if labels else found


def chosen(targets, given):
    """Per row the tokens at the chosen positions."""
    ids = given.get("input_ids", given.get("decoder_input_ids"))
    index = targets.index(given, ids.shape)
    assert index.numel() == int(targets.items(given))
    assert torch.equal(index, index.sort().values)
    rows = [[] for _ in range(ids.shape[0])]
    for at in index.tolist():
        rows[at // ids.shape[1]].append(ids.flatten()[at].item())
    return rows


WHOLE = [[5, 6, 7], [5, 6, 7, 8, 9, 10], [5, 6, 7, 8]]
BUT_LAST = [row[:-1] for row in WHOLE]


@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("targets", "given", "expected"),
    [
        (Targets("tokens"), {}, WHOLE),
        (Targets("tokens"), {"masked": (0, 2)}, [[6], [6, 8, 9, 10], [6, 8]]),
        (Targets("tokens"), {"labels": False}, WHOLE),
        (Targets("tokens", "tokens"), {"masked": (0, 2)}, WHOLE),
        (Targets("next"), {}, BUT_LAST),
        (Targets("next"), {"masked": (0, 2)}, [[5], [5, 7, 8, 9], [5, 7]]),
        (Targets("next"), {"labels": False}, BUT_LAST),
        (Targets("next", "tokens"), {"masked": (0, 2)}, BUT_LAST),
        (Targets(None), {"masked": (0, 2)}, [[6], [6, 8, 9, 10], [6, 8]]),
    ],
)
def test_positions_do_not_depend_on_padding(targets, given, expected, side, extra):
    assert chosen(targets, batch(side=side, extra=extra, **given)) == expected


def test_ready_shifted_labels_win():
    given = batch(labels=True)
    given["shift_labels"] = torch.full_like(given["labels"], -100)
    given["shift_labels"][1, 4] = 7
    assert chosen(Targets("next"), given) == [[], [9], []]


def test_rows_all_count():
    given = {**batch(labels=False), "labels": torch.tensor([1, -100, 0])}
    for targets in (Targets("rows"), Targets(None)):
        assert targets.items(given) == 3
        assert targets.index(given, torch.Size([3])).tolist() == [0, 1, 2]
    assert Targets("rows").items({"pixel_values": torch.zeros(5, 3, 4, 4)}) == 5
    assert Targets("rows").items({"labels": torch.zeros(4, 7)}) == 4
    assert Targets(None).items({"labels": torch.zeros(4, 7)}) == 4


@pytest.mark.parametrize("extra", [0, 4])
def test_decoder_positions_do_not_depend_on_padding(extra):
    ids = batch(labels=False, decoder=True, extra=extra)
    assert chosen(Targets("decoder", pad=0), ids) == WHOLE
    begun = {"decoder_input_ids": torch.cat((torch.zeros(3, 1, dtype=torch.long), ids["decoder_input_ids"]), 1)}
    assert chosen(Targets("decoder", pad=0), begun) == [[0, *row] for row in WHOLE]  # T5 begins with its pad token
    masked = {**ids, "decoder_attention_mask": ids["decoder_input_ids"].lt(8) & ids["decoder_input_ids"].gt(0)}
    assert chosen(Targets("decoder", pad=0), masked) == [[5, 6, 7]] * 3
    labels = {**batch(masked=(0,), extra=extra), "attention_mask": torch.ones(3, 2)}
    assert Targets("decoder").items(labels) == sum(LENGTHS) - 3
    assert Targets("decoder").items(ids) == 3 * (6 + extra)


def test_no_mask_means_no_padding():
    given = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    assert Targets("tokens").items(given) == 10
    assert Targets("next").items(given) == 8
    assert Targets("next").items({"inputs_embeds": torch.ones(2, 5, 3)}) == 8


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("tokens", {"attention_mask": torch.ones(2, 1, 5, 5)}, r"attention_mask of \(batch, tokens\)"),
        ("tokens", {"pixel_values": torch.ones(2, 3)}, "expected labels, attention_mask or input_ids"),
        ("decoder", {"input_ids": torch.ones(2, 3)}, "labels or decoder_input_ids"),
        ("rows", {"flag": True}, "no tensor to count rows of"),
    ],
)
def test_batches_that_cannot_be_read_are_refused(kind, given, message):
    with pytest.raises(ValueError, match=message):
        Targets(kind).items(given)


@pytest.mark.parametrize(("kind", "shape"), [("tokens", (3, 9)), ("rows", (3, 6)), (None, (3,))])
def test_logits_of_another_shape_are_refused(kind, shape):
    with pytest.raises(ValueError, match="a model that adds tokens"):
        Targets(kind).index(batch(), torch.Size(shape))
