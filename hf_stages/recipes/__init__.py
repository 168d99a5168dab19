"""Recipes: a run as a file, and ready runs. What a recipe's stages do stands in the rooms of their parts.

``load`` reads a YAML file, ``loads`` YAML text and ``from_dict`` plain data; ``dump`` and ``to_dict`` write a recipe
back. ``part_from_dict`` and ``part_to_dict`` do the same for one part, ``stage_from_dict`` for one stage.

>>> from hf_stages import recipes
>>> recipe = recipes.loads("stages: [{name: main, until: 2 epochs, schedule: Resume}]")
>>> print(recipes.dump(recipe), end="")
stages:
- name: main
  until: 2 epochs
  schedule: {use: Resume}

Ready recipes are functions that return a few plain stages, to run as they are or to print, edit and keep.
The distillations ``one_stage``, ``two_stage`` and ``three_stage`` take the same arguments:

``until``: the length of the whole run, split evenly into whole epochs, steps or tokens; the first stages take what is
left over. So the three can be compared at equal steps. It may also be a list with a duration for each stage.
``layers``: the layer map of hidden states and attention (attention has no layer 0). The default is ``uniform``; with
``reduce``, each kept layer learns from the teacher's layer that it was. ``hidden``, ``attention``, ``logits``,
``task``: a weight or a curve that multiplies ``HiddenMSE``, ``AttentionMSE``, ``LogitKL`` and ``TaskLoss``, or a loss
of your own instead; 0 leaves the part out. ``task`` is added where the logits are. ``learning_rate``: one for all, or
one for each stage; the default is the run's. ``reduce``: the layers that the student keeps (``ReduceLayers``) before
the first stage, such as [2, 4, 6].

The compressions ``multi_stage`` (general distillation, two bits, splitting, one bit), ``single_stage`` (straight to one
bit) and ``bitdistill`` (a decoder in ternary weights) take most of these arguments, too; their own docs list the
others.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

_FILES = ("load", "loads", "dump", "from_dict", "to_dict", "stage_from_dict")
if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.core.parts import part_from_dict as part_from_dict
    from hf_stages.core.parts import part_to_dict as part_to_dict
    from hf_stages.core.registry import RecipeError as RecipeError
    from hf_stages.recipes.files import dump as dump
    from hf_stages.recipes.files import from_dict as from_dict
    from hf_stages.recipes.files import load as load
    from hf_stages.recipes.files import loads as loads
    from hf_stages.recipes.files import stage_from_dict as stage_from_dict
    from hf_stages.recipes.files import to_dict as to_dict
    from hf_stages.recipes.ready.bitdistill import bitdistill as bitdistill
    from hf_stages.recipes.ready.multi_stage import multi_stage as multi_stage
    from hf_stages.recipes.ready.one_stage import one_stage as one_stage
    from hf_stages.recipes.ready.single_stage import single_stage as single_stage
    from hf_stages.recipes.ready.three_stage import three_stage as three_stage
    from hf_stages.recipes.ready.two_stage import two_stage as two_stage

_EXPORTS = Exports(
    __name__,
    ("recipes",),
    more={
        **dict.fromkeys(_FILES, "hf_stages.recipes.files"),
        "part_from_dict": "hf_stages.core.parts",
        "part_to_dict": "hf_stages.core.parts",
        "RecipeError": "hf_stages.core.registry",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
