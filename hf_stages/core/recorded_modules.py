"""The modules that files name parts by, which stay as they were when the modules move.

Folders, recipes and fingerprints hold names such as ``hf_stages.data.mixture``. A file of the package may move and be
renamed; what an earlier version wrote must not become something else by that.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_RECORDED = {
    "hf_stages.core.curves": "hf_stages.curves",
    "hf_stages.core.duration": "hf_stages.duration",
    "hf_stages.core.ledger": "hf_stages.ledger",
    "hf_stages.core.stage": "hf_stages.stage",
    "hf_stages.core.stops": "hf_stages.errors",
    "hf_stages.data.augmentation": "hf_stages.data",
    "hf_stages.data.collators": "hf_stages.data",
    "hf_stages.data.collators.progress": "hf_stages.data._progress",
    "hf_stages.data.curricula": "hf_stages.data",
    "hf_stages.data.curricula.base": "hf_stages.data._curriculum",
    "hf_stages.data.drawing.blend": "hf_stages.data._blend",
    "hf_stages.data.drawing.replayed": "hf_stages.data._replayed",
    "hf_stages.data.source_column": "hf_stages.source_collator",
    "hf_stages.evaluation.metrics": "hf_stages.metrics",
    "hf_stages.gates.base": "hf_stages.gates._gate",
    "hf_stages.layers.experts": "hf_stages.layers._experts",
    "hf_stages.layers.quantized": "hf_stages.layers._quantized",
    "hf_stages.layers.storage": "hf_stages.layers._stored",
    "hf_stages.losses.base": "hf_stages.losses._algebra",
    "hf_stages.losses.divergence": "hf_stages.losses._divergence",
    "hf_stages.losses.objective.by_source": "hf_stages.losses._on_source",
    "hf_stages.losses.target_logits": "hf_stages.losses._targets",
    "hf_stages.models.model_source": "hf_stages.model_source",
    "hf_stages.models.outputs": "hf_stages.losses._outputs",
    "hf_stages.models.real_tokens": "hf_stages.losses._tokens",
    "hf_stages.models.reduction": "hf_stages.losses._reduction",
    "hf_stages.models.signals": "hf_stages.losses._signals",
    "hf_stages.models.structure": "hf_stages.blueprint",
    "hf_stages.packing.formats": "hf_stages.exporters",
    "hf_stages.packing.packed_weight": "hf_stages.packing._weight",
    "hf_stages.planning.plan": "hf_stages.plan",
    "hf_stages.recipes.ready": "hf_stages.recipes",
    "hf_stages.schedules.base": "hf_stages.schedules._span",
    "hf_stages.teachers.declared": "hf_stages.teacher_source",
    "hf_stages.teachers.live": "hf_stages.teacher",
    "hf_stages.training.trainer": "hf_stages.trainer",
    "hf_stages.transforms.base": "hf_stages.transforms._transform",
}
"""By a module's (or a folder's) place now: its place when files first named what stands in it."""


def recorded_module(module: str) -> str:
    """Return the name that files have for a module.

    >>> recorded_module("hf_stages.data.curricula.mixture"), recorded_module("hf_stages.losses.dpo")
    ('hf_stages.data.mixture', 'hf_stages.losses.dpo')
    """
    fitting = [now for now in _RECORDED if f"{module}.".startswith(f"{now}.")]
    if not fitting:
        return module
    now = max(fitting, key=len)
    return _RECORDED[now] + module.removeprefix(now)


def module_recorded_as(name: str) -> str:
    """Return the module that files name so: the inverse of ``recorded_module``. Other names stay as they are.

    >>> module_recorded_as("hf_stages.data.mixture"), module_recorded_as("hf_stages.data.source")
    ('hf_stages.data.curricula.mixture', 'hf_stages.data.source')
    """
    for now, recorded in _RECORDED.items():
        module = now + name.removeprefix(recorded)
        if f"{name}.".startswith(f"{recorded}.") and recorded_module(module) == name and _is_there(module):
            return module
    return name


def _is_there(module: str) -> bool:
    return _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()
