"""Pull attention distributions towards the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_stages.losses._attention import ScoreLoss, divergence, masked_log_softmax
from hf_stages.models.attention_scores import both_visible, scores
from hf_stages.models.signals import Attention


@dataclass(frozen=True)
class AttentionKL(ScoreLoss):
    """KL(teacher || student) of each query's attention over the keys that it sees (MiniLM, MobileBERT).

    It is averaged over heads, summed over layers, and averaged over real tokens as queries.

    >>> AttentionKL(layers={-1: -1})
    AttentionKL(layers={-1: -1}, stack=None)
    """

    def layer_distance(self, student: Attention, teacher: Attention) -> torch.Tensor:
        seen = both_visible(student, teacher)
        with torch.no_grad():
            targets = masked_log_softmax(scores(teacher), seen)
        return divergence(targets, masked_log_softmax(scores(student), seen))
