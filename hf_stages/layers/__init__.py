"""Layers: where a model's blocks are, and modules that stand in for a model's own."""

from hf_stages.layers.blocks import blocks_of as blocks_of
from hf_stages.layers.blocks import stack_of as stack_of
from hf_stages.layers.blocks import stacks_of as stacks_of

__all__ = ["blocks_of", "stack_of", "stacks_of"]
