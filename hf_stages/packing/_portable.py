"""Write a packed model that transformers reads without hf_stages, in the layout of its "gemma" quantizer (two bits).

Only weights are packed: inputs of layers are not rounded there. The quantizer takes any ``nn.Linear`` and
``nn.Embedding``, expects two scalars beside each linear layer, which are not used, and leaves out modules by a pattern
of names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_stages.layers.own_type import record_of
from hf_stages.layers.packed_levels import pack_levels
from hf_stages.packing._reshaped import reshaped
from hf_stages.packing._sizes import PackedSize, packed_size
from hf_stages.packing._write import update_config
from hf_stages.packing.convert import pack_in_place, unpack_layer
from hf_stages.packing.packed_embedding import PackedEmbedding
from hf_stages.packing.packed_weight import PackedWeight


def write_portable(model: Any, out: Path, rest: torch.dtype, embeddings: str | None, max_shard_size: str) -> PackedSize:
    """Write the model; ValueError where the layout cannot hold it."""
    # A tied embedding is stored unpacked here, so int8 would only round it.
    specs = pack_in_place(model, rest, None if model.all_tied_weights_keys else embeddings)
    if record_of(model.config) is not None or reshaped(model):
        raise ValueError(
            "portable: the structure of this model was changed beyond what its config says (InsertSubLN, "
            "MakeRecurrent, ReduceWidth); stock transformers has no class for it: leave portable out"
        )
    fp32 = [*(model._keep_in_fp32_modules or ())]  # the quantizer leaves these out itself, such as T5's wo
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    for name in specs:
        module = model.get_submodule(name)
        if not isinstance(module, PackedWeight):
            continue  # tied to one that was unpacked
        _refuse(name, module)
        has_factor = isinstance(module, PackedEmbedding) and module.embed_scale is not None
        if name in tied or has_factor or not should_convert_module(name, fp32):
            unpack_layer(model, module, rest)
    packed = {name: m for name in specs if isinstance(m := model.get_submodule(name), PackedWeight)}
    if not packed:
        raise ValueError("portable: nothing is left to pack: all quantized layers are tied or kept in full precision")
    state = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] not in packed}
    for name, module in packed.items():
        state.update(_tensors(name, module))
    part_of = {key: f"{key.rpartition('.')[0]}.weight" for key in state if key.rpartition(".")[0] in packed}
    model.config.quantization_config = _config(packed, model.base_model_prefix)
    model.save_pretrained(out, state_dict=state, max_shard_size=max_shard_size)
    update_config(out / "config.json", {"dtype": "float32"})
    return packed_size(model, sorted(out.glob("*.safetensors")), part_of)


def _refuse(name: str, module: Any) -> None:
    if module.spec.levels == "split":
        raise ValueError(
            f"portable: {name}: the sum of two binary matrices has four levels without a common step, and the portable "
            "layout has one scale a row; leave portable out, or pack the ternary stage before the split"
        )
    if module.spec.group is not None and not isinstance(module, PackedEmbedding):
        raise ValueError(
            f"portable: {name}: has a scale for every {module.spec.group} weights, the portable layout one a row; "
            "leave portable out"
        )
    if getattr(module, "transposed", False):
        raise ValueError(f"portable: {name}: stock transformers packs no Conv1D (GPT-2); leave portable out")


def _tensors(name: str, module: Any) -> dict[str, torch.Tensor]:
    levels = module.levels
    data = levels if module.spec.levels == "int8" else pack_levels(levels, 2)
    if isinstance(module, PackedEmbedding):
        return {f"{name}.embedding_quantized": data, f"{name}.embedding_scale": module.scale.data}
    zero = torch.zeros(())  # without a scale the quantizer rounds nothing
    found = {
        f"{name}.weight": data,
        f"{name}.weight_scale": module.scale.data,
        f"{name}.input_activation_scale": zero,
        f"{name}.output_activation_scale": zero.clone(),
    }
    return found if module.bias is None else {**found, f"{name}.bias": module.bias.data}


def _config(packed: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the quantizer's config; names also fit where the base model is loaded without its head."""

    def pattern(names: list[str]) -> str:
        start = f"{prefix}." if prefix else ""
        return "|".join(rf"(?:{re.escape(start)})?{re.escape(name.removeprefix(start))}" for name in names)

    int8 = [name for name, module in packed.items() if module.spec.levels == "int8"]
    return {
        "quant_method": "gemma",
        "num_bits": 2,
        "quantize_embeddings": any(isinstance(module, PackedEmbedding) for module in packed.values()),
        "module_quant_configs": {rf"^(?:{pattern(int8)})$": {"num_bits": 8}} if int8 else None,
        # Everything but these, because the quantizer asks what to leave out.
        "modules_to_not_convert": [rf"(?!(?:{pattern(list(packed))})$).+"],
    }
