"""LogitMSE against PyTorch's own, on real models."""

from __future__ import annotations

import pytest
import torch

from hf_stages.losses import LogitMSE
from hf_stages.models.signals import Signals
from tests.support import tiny


@pytest.mark.parametrize("labels", [1, 3])
def test_rows_equal_pytorchs_mse(labels):
    student, teacher = tiny.bert(num_labels=labels).eval(), tiny.bert(1, num_labels=labels).eval()
    batch = {"input_ids": torch.arange(3, 19).view(4, 4)}
    loss = LogitMSE().for_models(student, teacher)
    s, t = student(**batch), teacher(**batch)
    found = loss(Signals(s), Signals(t), batch, 0.0)
    assert loss.items(batch) == 4
    torch.testing.assert_close(found / 4, torch.nn.functional.mse_loss(s.logits, t.logits))
    (slope,) = torch.autograd.grad(found / 4, student.classifier.bias, retain_graph=True)
    expected = torch.autograd.grad(torch.nn.functional.mse_loss(s.logits, t.logits.detach()), student.classifier.bias)
    torch.testing.assert_close(slope, *expected)


def test_next_tokens_equal_pytorchs_mse():
    student, teacher = tiny.llama().eval(), tiny.llama(1).eval()
    ids = torch.arange(3, 19).view(2, 8)
    batch = {"input_ids": ids, "labels": ids.clone()}
    batch["labels"][0, :3] = -100
    s, t = (model(input_ids=ids).logits for model in (student, teacher))
    kept = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    loss = LogitMSE().for_models(student, teacher)
    found = loss(Signals({"logits": s}), Signals({"logits": t}), batch, 0.0)
    assert loss.items(batch) == 12
    torch.testing.assert_close(found, (s - t).pow(2).mean(-1)[kept].sum())
    every = LogitMSE(on="tokens").for_models(student, teacher)
    assert every.items(batch) == 14


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="on: expected 'labels' or 'tokens', got 'rows'"):
        LogitMSE("rows")
