"""Attention distributions pulled towards the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_stages.losses._attention import OnScores, divergence, log_shares
from hf_stages.losses.attention_scores import both_visible, scores
from hf_stages.models.signals import Attention


@dataclass(frozen=True)
class AttentionKL(OnScores):
    """KL(teacher || student) of each query's attention over the keys it sees (MiniLM, MobileBERT): averaged over heads,
    summed over layers, averaged over real tokens as queries."""

    def apart(self, student: Attention, teacher: Attention) -> torch.Tensor:
        seen = both_visible(student, teacher)
        with torch.no_grad():
            targets = log_shares(scores(teacher), seen)
        return divergence(targets, log_shares(scores(student), seen))
