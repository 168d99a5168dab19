"""Staged training, distillation and compression inside the Hugging Face Trainer."""

from hf_stages.core.after_import import after_import as _after_import
from hf_stages.core.stage import Recipe as Recipe
from hf_stages.core.stage import Stage as Stage

__version__ = "0.1.0"
__all__ = ["CachedTeacher", "Recipe", "Stage", "StagedMixin", "StagedTrainer", "Teacher", "__version__"]


def _register() -> None:
    from hf_stages.models import auto_classes

    auto_classes.register()


def _register_packed() -> None:
    from hf_stages.packing import quantizer  # noqa: F401


# AutoConfig and AutoModel... know the project's own model type from the moment on that there is an AutoConfig.
_after_import("transformers.models.auto.configuration_auto", _register)
# transformers knows packed models from the moment on that it knows any quantized ones.
_after_import("transformers.quantizers.auto", _register_packed)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # The trainer pulls in torch and transformers (seconds); `hf-stages --help` and the nouns need neither.
    if name in ("StagedTrainer", "StagedMixin"):
        from hf_stages.training import trainer

        return getattr(trainer, name)
    if name in ("Teacher", "CachedTeacher"):
        from hf_stages.teachers import declared

        return getattr(declared, name)
    raise AttributeError(f"module 'hf_stages' has no attribute {name!r}")
