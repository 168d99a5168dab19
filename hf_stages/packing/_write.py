"""Write a packed model in our own layout: its config says how it is packed, transformers saves the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_stages.packing._reshaped import reshaped
from hf_stages.packing._seal import seal
from hf_stages.packing._sizes import PackedSize, packed_size
from hf_stages.packing._spec import to_layers
from hf_stages.packing.convert import pack_in_place
from hf_stages.packing.quantizer import PackedConfig, PackedQuantizer


def write_packed(model: Any, out: Path, rest: torch.dtype, embeddings: str | None, max_shard_size: str) -> PackedSize:
    specs = pack_in_place(model, rest, embeddings)
    model.hf_quantizer = _WithoutChecksums(PackedConfig(to_layers(specs), reshaped(model)))
    model.config.quantization_config = model.hf_quantizer.quantization_config
    model.save_pretrained(out, max_shard_size=max_shard_size)
    # What is stored in 16 bits computes in 32, which is faster on a CPU.
    update_config(out / "config.json", {"dtype": "float32"})
    seal(out)
    return packed_size(model, sorted(out.glob("*.safetensors")))


class _WithoutChecksums(PackedQuantizer):
    """A quantizer that writes no checksums of tensors, because the seal covers whole files."""

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        return None, {}


def update_config(file: Path, values: Mapping[str, Any]) -> None:
    """Change values of a JSON file."""
    config = {**json.loads(file.read_text(encoding="utf-8")), **values}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
