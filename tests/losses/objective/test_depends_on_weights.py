"""Terms that could train nothing are refused, however their value came by a graph."""

from __future__ import annotations

import pytest
import torch

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import HiddenMSE, Loss, TaskLoss
from hf_stages.losses.objective.depends_on_weights import reaches_weights
from hf_stages.transforms import Freeze
from tests.support import tiny
from tests.workers.cases import Pad, Rows, arguments


class OfInputs(Loss):
    """Its value depends on a leaf that requires a gradient and is no weight."""

    needs = frozenset({"hidden.0"})

    def items(self, batch):
        return batch["input_ids"].shape[0]

    def __call__(self, student, teacher, batch, t):
        return student["hidden.0"].detach().requires_grad_(True).sum()


def run(out, loss, student=None, stage=None, **kwargs):
    student = tiny.llama() if student is None else student
    rows = Rows([{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6], "attention_mask": [1] * 4}] * 4)
    stages = [Stage("one", "1 steps", loss=loss, **(stage or {}))]
    args = arguments(out, per_device_train_batch_size=4)
    return StagedTrainer(student, args, train_dataset=rows, data_collator=Pad(), stages=stages, **kwargs).train()


def test_a_leaf_that_is_no_weight_trains_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"loss OfInputs: its gradient reaches no weight, so it would train nothing"):
        run(tmp_path, TaskLoss() + OfInputs())


def test_frozen_weights_above_embeddings_that_require_a_gradient_train_nothing(tmp_path):
    """As checkpointing under an adapter sets them; only the head trains, which no hidden state depends on."""
    student = tiny.llama()
    student.enable_input_require_grads()
    frozen = {"transforms": [Freeze("model")]}
    with pytest.raises(ValueError, match=r"loss HiddenMSE: its gradient reaches no weight"):
        run(tmp_path, TaskLoss() + HiddenMSE(), student, frozen, teacher=tiny.llama(1))


def test_a_loss_that_reaches_only_its_own_projection_is_refused(tmp_path):
    frozen = {"transforms": [Freeze("model")]}
    with pytest.raises(ValueError, match=r"loss HiddenMSE: its gradient reaches no weight"):
        run(tmp_path, TaskLoss() + HiddenMSE(project="each"), None, frozen, teacher=tiny.llama(1, hidden_size=16))


def test_reentrant_checkpointing_is_taken_on_trust():
    layer, leaf = torch.nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    inside = torch.utils.checkpoint.checkpoint(layer, leaf, use_reentrant=True)
    assert reaches_weights(inside.sum())
    assert not reaches_weights((leaf * 2).sum())
    assert not reaches_weights(layer(leaf).sum(), {id(p) for p in layer.parameters()})
