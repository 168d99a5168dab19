"""Transforms: what the model becomes before a stage's first step."""

from hf_stages.transforms._transform import Transform as Transform
from hf_stages.transforms.freeze import Freeze as Freeze
from hf_stages.transforms.unfreeze import Unfreeze as Unfreeze

__all__ = ["Freeze", "Transform", "Unfreeze"]
