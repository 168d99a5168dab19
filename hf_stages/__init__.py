"""Staged training, distillation and compression inside the Hugging Face Trainer.

The rooms, from the ground up; each builds on those before it: ``core``, ``layers``, ``models``, then the parts of a
stage (``losses``, ``transforms``, ``schedules``, ``gates``), ``data``, ``teachers``, ``recipes``, ``planning``,
``reports``, ``packing``, ``evaluation``, ``training``, ``commands``.

What a script needs is here by its name: ``from hf_stages import Stage, StagedTrainer, LogitKL, Ternarize, Rewarm,
pack``.
"""

from typing import Any

from hf_stages.core.after_import import after_import as _after_import
from hf_stages.core.exports import Exports as _Exports
from hf_stages.core.version import __version__ as __version__

_EXPORTS = _Exports(
    __name__,
    (
        *("losses", "transforms", "schedules", "gates", "monitors", "data", "metrics", "teachers", "exporters"),
        *("curves", "recipes"),
    ),
    more={
        "ModelSource": "hf_stages.models.model_source",
        "Recipe": "hf_stages.core.stage",
        "Stage": "hf_stages.core.stage",
        "StagedMixin": "hf_stages.training.trainer",
        "StagedTrainer": "hf_stages.training.trainer",
        "load_stage": "hf_stages.models.stage_models",
        "pack": "hf_stages.packing.pack_folder",
    },
)


def _register() -> None:
    from hf_stages.models import auto_classes

    auto_classes.register()


def _register_packed() -> None:
    from hf_stages.packing import quantizer  # noqa: F401


# AutoConfig and AutoModel... know the project's own model type from the moment on that there is an AutoConfig.
_after_import("transformers.models.auto.configuration_auto", _register)
# transformers knows packed models from the moment on that it knows any quantized ones.
_after_import("transformers.quantizers.auto", _register_packed)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return sorted({*_EXPORTS.names(), "__version__"})
