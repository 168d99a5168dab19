"""What stock transformers reads by itself: the layout of its built-in "gemma" quantizer, two bits a weight.

Weights alone: what enters a layer is not rounded there. The quantizer takes any ``nn.Linear`` and ``nn.Embedding``,
wants two unused scalars beside each linear layer, and leaves out what a pattern of names says.
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
from hf_stages.packing._write import rewrite
from hf_stages.packing.convert import pack_in_place, unpack_one
from hf_stages.packing.packed_embedding import PackedEmbedding
from hf_stages.packing.packed_weight import PackedWeight


def write_portable(model: Any, out: Path, rest: torch.dtype, embeddings: str | None, max_shard_size: str) -> PackedSize:
    """ValueError where the layout has no room for what the model is."""
    # A table that is tied stays dense here, so that int8 would only round it.
    specs = pack_in_place(model, rest, None if model.all_tied_weights_keys else embeddings)
    if record_of(model.config) is not None or reshaped(model):
        raise ValueError(
            "portable: the structure of this model was changed beyond what its config says (InsertSubLN, ReduceWidth); "
            "stock transformers has no class for it: leave portable out"
        )
    fp32 = [*(model._keep_in_fp32_modules or ())]  # the quantizer leaves these out by itself: T5's wo
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    for name in specs:
        module = model.get_submodule(name)
        if not isinstance(module, PackedWeight):
            continue  # tied to one that was
        _refuse(name, module)
        scaled = isinstance(module, PackedEmbedding) and module.embed_scale is not None
        if name in tied or scaled or not should_convert_module(name, fp32):
            unpack_one(model, module, rest)
    kept = {name: m for name in specs if isinstance(m := model.get_submodule(name), PackedWeight)}
    if not kept:
        raise ValueError("portable: nothing is left to pack: all quantized layers are tied or kept in full precision")
    state = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] not in kept}
    for name, module in kept.items():
        state.update(_tensors(name, module))
    part_of = {key: f"{key.rpartition('.')[0]}.weight" for key in state if key.rpartition(".")[0] in kept}
    model.config.quantization_config = _config(kept, model.base_model_prefix)
    model.save_pretrained(out, state_dict=state, max_shard_size=max_shard_size)
    rewrite(out / "config.json", {"dtype": "float32"})
    return packed_size(model, sorted(out.glob("*.safetensors")), part_of)


def _refuse(name: str, module: Any) -> None:
    if module.spec.levels == "split":
        raise ValueError(
            f"portable: {name}: the sum of two binary matrices has four levels without a common step, and the portable layout "
            "has one scale a row; leave portable out, or pack the ternary stage before the split"
        )
    if module.spec.group is not None and not isinstance(module, PackedEmbedding):
        raise ValueError(
            f"portable: {name}: has a scale for every {module.spec.group} weights, the portable layout one a row; leave portable out"
        )
    if getattr(module, "transposed", False):
        raise ValueError(f"portable: {name}: stock transformers packs no Conv1D (GPT-2); leave portable out")


def _tensors(name: str, module: Any) -> dict[str, torch.Tensor]:
    levels = module.levels
    data = levels if module.spec.levels == "int8" else pack_levels(levels, 2)
    if isinstance(module, PackedEmbedding):
        return {f"{name}.embedding_quantized": data, f"{name}.embedding_scale": module.scale.data}
    zero = torch.zeros(())  # no scale: the quantizer rounds nothing
    found = {
        f"{name}.weight": data,
        f"{name}.weight_scale": module.scale.data,
        f"{name}.input_activation_scale": zero,
        f"{name}.output_activation_scale": zero.clone(),
    }
    return found if module.bias is None else {**found, f"{name}.bias": module.bias.data}


def _config(kept: dict[str, Any], prefix: str) -> dict[str, Any]:
    """By name, also for who loads the base model without its head."""

    def pattern(names: list[str]) -> str:
        start = f"{prefix}." if prefix else ""
        return "|".join(rf"(?:{re.escape(start)})?{re.escape(name.removeprefix(start))}" for name in names)

    whole = [name for name, module in kept.items() if module.spec.levels == "int8"]
    return {
        "quant_method": "gemma",
        "num_bits": 2,
        "quantize_embeddings": any(isinstance(module, PackedEmbedding) for module in kept.values()),
        "module_quant_configs": {rf"^(?:{pattern(whole)})$": {"num_bits": 8}} if whole else None,
        # All but these: the quantizer asks what to leave out.
        "modules_to_not_convert": [rf"(?!(?:{pattern(list(kept))})$).+"],
    }
