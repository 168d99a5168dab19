"""Ready recipes: functions that return a few plain stages, to run as they are or to print, edit and keep.

The distillations ``one_stage``, ``two_stage`` and ``three_stage`` take the same arguments:

``until``: the length of the whole run, split evenly into whole epochs, steps or tokens, the first stages taking what is
left over. So the three can be compared at equal steps. Or a list: one duration for each stage.
``layers``: the layer map of hidden states and attention (attention goes without layer 0). Left out, it is ``uniform``,
or, with ``reduce``, each kept layer learns from the one it was.
``hidden``, ``attention``, ``logits``, ``task``: a weight or a curve that multiplies ``HiddenMSE``, ``AttentionMSE``,
``LogitKL`` and ``TaskLoss``, or a loss of your own in its place; 0 leaves the part out. ``task`` goes with the logits.
``learning_rate``: one, or one for each stage; left out, it is the run's.
``reduce``: the layers that the student keeps (``ReduceLayers``) before the first stage, such as [2, 4, 6].

The compressions ``multi_stage`` (general distillation, two bits, splitting, one bit), ``single_stage`` (straight to one bit)
and ``bitdistill`` (a decoder in ternary weights) take most of these too, and say for themselves what they add.
"""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(__name__, ("recipes",))


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
