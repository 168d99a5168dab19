"""The project's packed models through transformers' own quantizer API: ``from_pretrained`` of any class loads them.

Imported while transformers is being imported, so this module itself imports next to nothing.
"""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "hf_stages"
VERSION = 1


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed model: which of its modules are packed, and how."""

    def __init__(self, layers: Any = None, reshaped: Any = None, version: int = VERSION, **kwargs: Any) -> None:
        self.quant_method: Any = METHOD
        if version != VERSION:
            raise ValueError(
                f"config.json: quantization_config.version: this hf_stages reads version {VERSION}, got {version!r}; update hf_stages"
            )
        self.version = version
        self.layers = layers or []
        self.reshaped = reshaped or {}
        """Shapes that the model's own config cannot say."""


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts packed layers into the model before its weights are read; nothing is converted while they are."""

    requires_calibration = True
    """transformers then says that a model in full precision cannot be packed by loading it."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from hf_stages.packing._install import install

        install(model, self.quantization_config, kwargs.get("checkpoint_files"))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_stages.packing._install import check_values

        check_values(model)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        from hf_stages.packing._convert import unpack

        unpack(model, dtype)
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top of it are."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True
