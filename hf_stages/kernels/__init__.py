"""Fast linear layers on packed 1-bit and 2-bit weights."""

from hf_stages.kernels._library import which as which
from hf_stages.kernels._linear import linear as linear

__all__ = ["linear", "which"]
