"""Losses, one in each file. A loss returns its sum over a micro-batch and says how many items it ran over.

``objective`` holds what makes them one loss for each update. Nothing here knows of a trainer's data or teachers.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.losses.attention_kl import AttentionKL as AttentionKL
    from hf_stages.losses.attention_mse import AttentionMSE as AttentionMSE
    from hf_stages.losses.attention_relation import AttentionRelation as AttentionRelation
    from hf_stages.losses.balanced import Balanced as Balanced
    from hf_stages.losses.base import Loss as Loss
    from hf_stages.losses.dpo import DPO as DPO
    from hf_stages.losses.embedding_cosine import EmbeddingCosine as EmbeddingCosine
    from hf_stages.losses.halting_loss import HaltingLoss as HaltingLoss
    from hf_stages.losses.hidden_mse import HiddenMSE as HiddenMSE
    from hf_stages.losses.logit_kl import LogitKL as LogitKL
    from hf_stages.losses.logit_mse import LogitMSE as LogitMSE
    from hf_stages.losses.task_loss import TaskLoss as TaskLoss

_EXPORTS = Exports(__name__, ("losses",), more={"Loss": "hf_stages.losses.base"})


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
