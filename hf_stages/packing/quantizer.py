"""Packed models in transformers' quantizer API, so that ``from_pretrained`` of any class loads them.

This module is imported right after transformers, so it imports little itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_stages.packing._stop_text import STOP_KEY, STOP_TEXT

METHOD = "hf_stages"
VERSION = 1


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a packed model: which of its modules are packed, and how.

    Args:
        layers: Each kind of packed weight, with its modules.
        reshaped: Sizes and numbers that the model's own config cannot describe.
        version: The version of the layout.
        seal: The seal of the files that it was read from.

    >>> PackedConfig(layers=[]).to_dict()["quant_method"]
    'hf_stages'
    """

    def __init__(
        self, layers: Any = None, reshaped: Any = None, version: int = VERSION, seal: Any = None, **kwargs: Any
    ) -> None:
        self.quant_method: Any = METHOD
        if version != VERSION:
            raise ValueError(
                f"config.json: quantization_config.version: this hf_stages reads version {VERSION}, got "
                f"{version!r}; update hf_stages"
            )
        if unknown := sorted(set(kwargs) - {"quant_method"}):
            raise ValueError(
                "config.json: quantization_config: expected quant_method, version, layers, reshaped and seal, got "
                f"{unknown[0]!r}; download it anew"
            )
        self.version = version
        self.layers = [] if layers is None else layers
        self.reshaped = {} if reshaped is None else reshaped
        self.seal = seal

    def to_dict(self) -> dict[str, Any]:
        """Return plain data without the seal, which does not fit the files that are saved next."""
        return {key: value for key, value in super().to_dict().items() if key != "seal"}


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts packed layers into a model before its weights are read. Weights are not converted while they are read."""

    requires_calibration = True
    """True: transformers then refuses to quantize a model in full precision by loading it."""

    def update_attn_implementation(self, config: Any) -> Any:
        """Check the config and the folder: this is the only hook that is called before files are looked up."""
        from hf_stages.packing._seal import check_config, check_folder

        sealed = vars(config).pop(STOP_KEY, None) == STOP_TEXT
        file, seal = Path(config.name_or_path or "", "config.json"), self.quantization_config.seal
        if sealed or seal is not None:
            check_config(file, seal)
        if file.is_file():
            check_folder(file.parent, seal)
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from hf_stages.packing._install import install
        from hf_stages.packing._seal import check_config, check_files
        from hf_stages.packing._tensor_checksums import check_tensor_checksums, check_tensor_names

        files, seal = kwargs.get("checkpoint_files"), self.quantization_config.seal
        if files and seal is not None:
            if not Path(model.config.name_or_path or "").is_dir():  # from the Hub: its config.json is beside the files
                check_config(Path(files[0]).with_name("config.json"), seal)
            check_files(files, seal)
        install(model, self.quantization_config, files)
        if files and seal is None and not check_tensor_checksums(files, self.quantization_config.to_dict()):
            check_tensor_names(model, files)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_stages.packing._install import check_values

        check_values(model)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        from hf_stages.packing.convert import unpack_layers

        unpack_layers(model, dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        """Add checksums to what ``save_pretrained`` and ``push_to_hub`` write; an adapter's file gets none."""
        from hf_stages.packing._tensor_checksums import tensor_checksums

        adapter = getattr(model, "_hf_peft_config_loaded", False)
        return None, {} if adapter else tensor_checksums(model, self.quantization_config.to_dict())

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """True, because adapters on top of it can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True
