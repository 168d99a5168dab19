"""Which labels count: causal models move them by one, also those whose class does not say so."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from hf_stages.losses import TaskLoss
from tests.support import tiny


def gpt2():
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, bos_token_id=1, eos_token_id=1)
    )


@pytest.mark.parametrize(("model", "counted"), [(gpt2, 6), (tiny.llama, 6), (tiny.t5, 8)])
def test_a_causal_models_first_label_is_no_target(model, counted):
    labels = torch.tensor([[2] * 5, [2, 2, 2, -100, -100]])
    assert int(TaskLoss().for_models(model(), None).items({"labels": labels})) == counted
