"""A row's loss is the model's own on that row alone, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch

from hf_stages.data import ByDifficulty, ModelLoss
from hf_stages.data.drawing.blend import make_blend
from tests.support import tiny


def test_scores_are_the_models_loss_on_each_row(tmp_path):
    model = tiny.llama().train()
    rows = [{"input_ids": row["input_ids"][: 3 + i]} for i, row in enumerate(tiny.lm_data(7))]
    scores = ModelLoss(model, rows=3)(rows)
    assert model.training
    with torch.no_grad():
        for row, score in zip(rows, scores, strict=True):
            ids = torch.tensor([row["input_ids"]])
            assert score == pytest.approx(model.eval()(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    model.save_pretrained(tmp_path / "model")
    part = ByDifficulty(rows, by=ModelLoss("model")).resolve(tmp_path)
    assert part.by.model == str(tmp_path / "model")
    found = make_blend(part, lambda name, where: None, "stage").bind(7, 0)
    assert found.at(list(range(7)))[1].tolist() == sorted(range(7), key=lambda i: scores[i])


def test_rows_that_predict_nothing_score_zero() -> None:
    rows = [{"input_ids": ids} for ids in ([], [3], [3, 4, 5])]
    found = ModelLoss(tiny.llama())(rows)
    assert found[:2] == [0.0, 0.0]
    assert found[2] > 0
    assert ModelLoss(tiny.llama())(rows[:2]) == [0.0, 0.0]
