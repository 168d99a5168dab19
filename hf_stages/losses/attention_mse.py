"""Pull attention scores, before the softmax, towards the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_stages.losses._attention import ScoreLoss
from hf_stages.models.attention_scores import both_visible, scores
from hf_stages.models.signals import Attention


@dataclass(frozen=True)
class AttentionMSE(ScoreLoss):
    """Mean squared difference of attention scores before the softmax, over heads and visible keys.

    It is summed over layers and averaged over real tokens as queries (TinyBERT, BinaryBERT, XTC, which count padding).
    Scores are computed from the queries and keys of the mapped layers only. The model itself may run SDPA.

    >>> AttentionMSE(layers="last")
    AttentionMSE(layers='last', stack=None)
    """

    def layer_distance(self, student: Attention, teacher: Attention) -> torch.Tensor:
        with torch.no_grad():
            target = scores(teacher)
        off = scores(student, minus=target)
        seen = both_visible(student, teacher)
        if seen is None:
            return off.pow(2).mean(-1)
        seen = seen.to(off.dtype)
        keys = seen.sum(-1).clamp(min=1.0)
        return off.masked_fill(seen == 0, 0.0).pow(2).sum(-1) / keys
