"""Losses: one file each. A loss returns its sum over a micro-batch and says over how many items it runs."""

from hf_stages.losses._algebra import Loss as Loss
from hf_stages.losses.attention_kl import AttentionKL as AttentionKL
from hf_stages.losses.attention_mse import AttentionMSE as AttentionMSE
from hf_stages.losses.attention_relation import AttentionRelation as AttentionRelation
from hf_stages.losses.balanced import Balanced as Balanced
from hf_stages.losses.dpo import DPO as DPO
from hf_stages.losses.embedding_cosine import EmbeddingCosine as EmbeddingCosine
from hf_stages.losses.hidden_mse import HiddenMSE as HiddenMSE
from hf_stages.losses.logit_kl import LogitKL as LogitKL
from hf_stages.losses.logit_mse import LogitMSE as LogitMSE
from hf_stages.losses.task_loss import TaskLoss as TaskLoss

__all__ = [
    "DPO",
    "AttentionKL",
    "AttentionMSE",
    "AttentionRelation",
    "Balanced",
    "EmbeddingCosine",
    "HiddenMSE",
    "LogitKL",
    "LogitMSE",
    "Loss",
    "TaskLoss",
]
