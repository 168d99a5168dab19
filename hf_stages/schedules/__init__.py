"""How a stage takes over the learning rate and, independently, the optimizer."""

from hf_stages.schedules.fresh import Fresh as Fresh
from hf_stages.schedules.resume import Resume as Resume
from hf_stages.schedules.rewarm import Rewarm as Rewarm

__all__ = ["Fresh", "Resume", "Rewarm"]
