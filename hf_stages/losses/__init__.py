"""Losses: one file each. A loss returns its sum over a micro-batch and says over how many items it runs."""

from hf_stages.losses._algebra import Loss as Loss
from hf_stages.losses.balanced import Balanced as Balanced
from hf_stages.losses.task_loss import TaskLoss as TaskLoss

__all__ = ["Balanced", "Loss", "TaskLoss"]
