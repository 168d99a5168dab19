"""A tiny Llama with a recurrent core that does not ignore its state."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM

from hf_stages.layers import find_recurrence
from hf_stages.transforms import MakeRecurrent
from tests.support import tiny


def looped(model: Any = None, **options: Any) -> LlamaForCausalLM:
    """Prelude 1, core 2, coda 1, in evaluation mode; the adapter mixes state and input at random."""
    options = {"mean_depth": 4.0, "norm": "pre", **options}
    model = model if model is not None else tiny.llama(num_hidden_layers=4)
    model = MakeRecurrent(1, 2, 1, **options)(model).eval()
    adapter: Any = find_recurrence(model).adapter  # type: ignore[union-attr]
    if adapter is not None:
        torch.nn.init.normal_(adapter.weight, std=0.15, generator=torch.Generator().manual_seed(1))
    return model


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, tiny.VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
