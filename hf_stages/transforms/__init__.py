"""Transforms: what the model becomes before a stage's first step."""

from hf_stages.transforms._transform import Transform as Transform

__all__ = ["Transform"]
