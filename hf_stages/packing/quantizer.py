"""The project's packed models through transformers' own quantizer API: ``from_pretrained`` of any class loads them.

Imported while transformers is being imported, so this module itself imports next to nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_stages.packing._words import STOP, STOP_KEY

METHOD = "hf_stages"
VERSION = 1


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed model: which of its modules are packed, and how."""

    def __init__(
        self, layers: Any = None, reshaped: Any = None, version: int = VERSION, seal: Any = None, **kwargs: Any
    ) -> None:
        self.quant_method: Any = METHOD
        if version != VERSION:
            raise ValueError(
                f"config.json: quantization_config.version: this hf_stages reads version {VERSION}, got {version!r}; update hf_stages"
            )
        if unknown := sorted(set(kwargs) - {"quant_method"}):
            raise ValueError(
                "config.json: quantization_config: expected quant_method, version, layers, reshaped and seal, got "
                f"{unknown[0]!r}; download it anew"
            )
        self.version = version
        self.layers = [] if layers is None else layers
        self.reshaped = {} if reshaped is None else reshaped
        """Shapes that the model's own config cannot say."""
        self.seal = seal
        """Of the files that this was read from."""

    def to_dict(self) -> dict[str, Any]:
        """Without the seal: what is saved again is other files."""
        return {key: value for key, value in super().to_dict().items() if key != "seal"}


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts packed layers into the model before its weights are read; nothing is converted while they are."""

    requires_calibration = True
    """transformers then says that a model in full precision cannot be packed by loading it."""

    def update_attn_implementation(self, config: Any) -> Any:
        """The one hook that sees the config before files are looked for."""
        from hf_stages.packing._seal import check_config, check_folder

        sealed = vars(config).pop(STOP_KEY, None) == STOP
        file, seal = Path(config.name_or_path or "", "config.json"), self.quantization_config.seal
        if sealed or seal is not None:
            check_config(file, seal)
        if file.is_file():
            check_folder(file.parent, seal)
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from hf_stages.packing._install import install
        from hf_stages.packing._marks import check_marks, check_names
        from hf_stages.packing._seal import check_config, check_files

        files, seal = kwargs.get("checkpoint_files"), self.quantization_config.seal
        if files and seal is not None:
            if not Path(model.config.name_or_path or "").is_dir():  # from the Hub: its config.json lies beside them
                check_config(Path(files[0]).with_name("config.json"), seal)
            check_files(files, seal)
        install(model, self.quantization_config, files)
        if files and seal is None and not check_marks(files, self.quantization_config.to_dict()):
            check_names(model, files)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_stages.packing._install import check_values

        check_values(model)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        from hf_stages.packing.convert import unpack

        unpack(model, dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        """What ``save_pretrained`` and ``push_to_hub`` write; an adapter's file is not of the packed weights."""
        from hf_stages.packing._marks import marks

        adapter = getattr(model, "_hf_peft_config_loaded", False)
        return None, {} if adapter else marks(model, self.quantization_config.to_dict())

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top of it are."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True
