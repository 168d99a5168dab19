"""The two output projections of a block, attention's and the feed-forward's, whatever an architecture calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.layers.blocks import base_of, stacks_of
from hf_stages.layers.normed_linear import NormedLinear

KINDS = ("attention", "ffn")
_NAMES = {
    "attention": frozenset({"o_proj", "out_proj", "o", "out_lin", "c_proj", "dense", "wo", "proj", "to_out"}),
    "ffn": frozenset(
        {"down_proj", "fc2", "lin2", "wo", "w2", "c_proj", "dense_4h_to_h", "fc_out", "linear2", "output_dense"}
    ),
}
_PARAMETER_CONV = (nn.Conv1d, nn.ConvTranspose1d)


def linear_layers(module: nn.Module) -> dict[str, Any]:
    """Return linear layers by dotted name, quantized ones too; a layer with its norm counts as one."""
    found = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D | NormedLinear)}
    inside = {f"{name}.linear" for name, m in found.items() if isinstance(m, NormedLinear)}
    return {name: m for name, m in found.items() if name not in inside}


def blocks_with_linears(model: Any) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Yield (name in the model, block, its linear layers)."""
    for path, blocks in stacks_of(model).values():
        for index, block in enumerate(blocks):
            if linears := linear_layers(block):  # wav2vec2's stack of convolutions has none
                yield f"{path}.{index}", block, linears


def output_projections(model: Any, kinds: tuple[str, ...]) -> list[str]:
    """Return names of the output projections of every block; ValueError where a block has none that is known."""
    found = []
    for path, block, linears in blocks_with_linears(model):
        for kind in kinds:
            names = _of_kind(linears, kind)
            wanted = [
                name
                for name in names
                if name.rpartition(".")[2].lower() in _NAMES[kind] or _is_bert_ffn_output(name, kind)
            ]
            wrong = [name for name in wanted if not _input_fits(model, path, name, [linears[n] for n in names])]
            if kind == "ffn" and (experts := _stacked_experts(block)) is not None:
                raise ValueError(
                    f"{path}.{experts} holds the projections of all experts in one parameter, which no norm can be put "
                    "before; say where='attention', or name modules="
                )
            if not wanted or wrong:
                seen = (
                    f"{wrong[0]} takes {linears[wrong[0]].in_features}, which nothing before it gives"
                    if wrong
                    else (f"none among {', '.join(linears)}")
                )
                raise ValueError(f"{path}: expected the output projection of its {kind}, found {seen}; name modules=")
            found += [f"{path}.{name}" for name in wanted]
    if not found:
        raise ValueError(
            f"{type(base_of(model)).__name__}: it has no stack of blocks with linear layers; name modules="
        )
    return found


def _of_kind(linears: dict[str, Any], kind: str) -> list[str]:
    attention = [name for name in linears if "attn" in name.lower() or "attention" in name.lower()]
    return attention if kind == "attention" else [name for name in linears if name not in attention]


def _is_bert_ffn_output(name: str, kind: str) -> bool:
    """Recognize ``output.dense`` of BERT and its relatives, beside ``intermediate.dense``."""
    return kind == "ffn" and name.split(".")[-2:] == ["output", "dense"]


def _input_fits(model: Any, path: str, name: str, others: list[Any]) -> bool:
    """Tell whether its input is as wide as the output of a layer beside it, or as heads times head size.

    Where several projections are fused in one layer, a part of its output is enough.
    """
    parts = f"{path}.{name}".split(".")
    base = base_of(model)
    layer = base.get_submodule(".".join(parts))
    width = _in(layer)
    if any(_out(other) % width == 0 for other in others if other is not layer):
        return True
    around = (vars(base.get_submodule(".".join(parts[:end]))).get("config") for end in range(len(parts) - 1, -1, -1))
    config = next((config for config in around if config is not None), None)
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // (heads or 1)
    return heads is not None and heads * size == width


def _stacked_experts(block: nn.Module) -> str | None:
    for name, module in block.named_modules():
        stacked = any(p.dim() == 3 for p in module.parameters(recurse=False))
        if (
            stacked
            and not isinstance(module, _PARAMETER_CONV)
            and "expert" in f"{name} {type(module).__name__}".lower()
        ):
            return name
    return None


def _in(layer: Any) -> int:
    return layer.in_features if hasattr(layer, "in_features") else layer.nx


def _out(layer: Any) -> int:
    return layer.out_features if hasattr(layer, "out_features") else layer.nf
