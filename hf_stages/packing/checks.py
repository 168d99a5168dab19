"""Check before the first step that stages with ``pack_on_save`` can be packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage import Recipe
from hf_stages.packing.convert import check_packable


def check_packed_stages(recipe: Recipe, skeletons: Mapping[str, Any]) -> None:
    """Refuse stages that cannot be packed; ``skeletons`` are the stages' models on the meta device."""
    for stage in recipe.stages:
        if stage.pack_on_save and stage.name in skeletons:
            with place_errors(f"stage {stage.name!r}: pack_on_save"):
                check_packable(skeletons[stage.name])
