"""Losses: one file each. A loss returns its sum over a micro-batch and says over how many items it runs."""

from hf_stages.losses._algebra import Loss as Loss
from hf_stages.losses.logit_kl import LogitKL as LogitKL
from hf_stages.losses.logit_mse import LogitMSE as LogitMSE
from hf_stages.losses.task_loss import TaskLoss as TaskLoss

__all__ = ["LogitKL", "LogitMSE", "Loss", "TaskLoss"]
