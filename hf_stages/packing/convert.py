"""Turn a model's quantized layers into packed ones, and packed layers into plain ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_stages.layers.experts import QuantizedExperts
from hf_stages.layers.packed_levels import pack_levels
from hf_stages.layers.quantizable import holders_of, word_embeddings_of
from hf_stages.layers.quantized import CLIP, Quantized
from hf_stages.packing._spec import PackedSpec
from hf_stages.packing.packed_embedding import PackedEmbedding
from hf_stages.packing.packed_linear import PackedLinear
from hf_stages.packing.packed_weight import SCALE, PackedWeight, apply_embed_scale

Packed = tuple[nn.Parameter, nn.Parameter]


def check_packable(model: Any) -> None:
    """Refuse a model that cannot be packed. It may be on the meta device."""
    if type(model).__module__.startswith("peft."):
        # save_pretrained would write the adapter alone.
        raise ValueError("the model has adapters; merge them first (MergeLora, or merge_and_unload())")
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a transformers model or a stage folder, got a {type(model).__name__}")
    if any(isinstance(module, PackedWeight) for module in model.modules()):
        raise ValueError("the model is packed already; to write it elsewhere, call its save_pretrained")
    for name, module in model.named_modules():
        if isinstance(module, QuantizedExperts):
            raise ValueError(
                f"{name}: experts stored as stacks cannot be packed yet; leave them out of what is quantized"
            )
    if not any(isinstance(module, Quantized) for module in model.modules()):
        raise ValueError(
            "the model has no quantized layers to pack; train it with Ternarize or Binarize first (a stage folder "
            "knows them, a model loaded from one by its class does not: give the folder)"
        )


def pack_in_place(model: Any, rest: torch.dtype, embeddings: str | None) -> dict[str, PackedSpec]:
    """Pack a model's layers in place and store all other weights in ``rest``; return what is packed, by name."""
    check_packable(model)
    specs = pack_layers(model, embeddings)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and rest == torch.float16 and float(parameter.detach().abs().amax()) > 65504:
            raise ValueError(f"rest: {name} holds values beyond float16's largest; choose rest='bfloat16' or 'float32'")
    model.to(rest)
    return specs


def pack_layers(model: Any, embeddings: str | None) -> dict[str, PackedSpec]:
    """Pack a model's quantized layers in place; return what is packed, by name.

    ``embeddings="int8"`` also packs word embeddings, and what is tied to them, that are in full precision.
    """
    done: dict[int, Packed] = {}  # by the id of the latent weight: tied layers share their packed tensors
    words = word_embeddings_of(model) if embeddings == "int8" else set()
    plain = {
        id(module.weight) for module in model.modules() if id(module) in words and type(module.weight) is nn.Parameter
    }
    specs: dict[str, PackedSpec] = {}

    def packed(name: str, module: Any) -> nn.Module | None:
        if isinstance(module, Quantized):
            specs[name] = spec_of(name, module)
            return _packed_quantized(module, specs[name], done)
        if isinstance(module, nn.Linear | nn.Embedding) and id(module._parameters.get("weight")) in plain:
            specs[name] = PackedSpec("int8")
            return _packed_int8(module, done)
        return None

    _replace_modules(model, packed)
    tie_packed_layers(model)
    return specs


def unpack_layers(model: Any, dtype: torch.dtype) -> None:
    """Replace packed layers in place by plain ones with the same effective weights."""
    done: dict[int, nn.Parameter] = {}

    def dense(name: str, module: Any) -> nn.Module | None:
        if not isinstance(module, PackedWeight):
            return None
        weight = done.get(id(module.weight))
        if weight is None:
            weight = done[id(module.weight)] = nn.Parameter(module.dense(dtype))
        return _plain_layer(module, weight)

    _replace_modules(model, dense)
    model.to(dtype)
    for inner in _models_in(model):
        inner.__dict__.pop("_tied_weights_keys", None)
    _expand_ties(model)


def unpack_layer(model: Any, module: Any, dtype: torch.dtype) -> None:
    """Replace one packed layer by a plain one, wherever it is used. Its ties are kept."""
    dense = nn.Parameter(module.dense(dtype))
    for other in [m for m in model.modules() if isinstance(m, PackedWeight) and m.weight is module.weight]:
        for parent, key in list(holders_of(model, {id(other)})):
            parent._modules[key] = _plain_layer(other, dense)
    tie_packed_layers(model)


def tie_packed_layers(model: Any) -> None:
    """Tie packed weights and their scales by name, as transformers does; the other layer of a tie is packed too."""
    for inner in _models_in(model):
        declared = type(inner)._tied_weights_keys
        inner.__dict__.pop("_tied_weights_keys", None)
        if not isinstance(declared, dict) or not getattr(inner.config, "tie_word_embeddings", False):
            continue
        pairs: dict[str, str] = {}
        for target, source in declared.items():
            names = target.rpartition(".")[0], source.rpartition(".")[0]
            if target.endswith(".weight") and _pack_partner(inner, names):
                pairs |= {f"{names[0]}.{key}": f"{names[1]}.{key}" for key in ("weight", SCALE)}
            else:
                pairs[target] = source
        inner._tied_weights_keys = pairs
    _expand_ties(model)


def _pack_partner(model: Any, names: Sequence[str]) -> bool:
    """Whether two tied modules are packed. Where only one is, the other one is packed here."""
    try:
        pair: list[Any] = [model.get_submodule(name) for name in names]
    except AttributeError:  # a pattern
        return False
    packed: Any = next((module for module in pair if isinstance(module, PackedWeight)), None)
    for module in pair if packed is not None else ():
        if not isinstance(module, PackedWeight):
            # A head that shares the embedding's weight does not round its inputs.
            spec = replace(packed.spec, activations=None)
            tensors = packed.weight, packed.scale
            make = packed_embedding_for if isinstance(module, nn.Embedding) else packed_linear_for
            new = make(module, spec, *tensors)
            for parent, key in holders_of(model, {id(module)}):
                parent._modules[key] = new
    return packed is not None


def spec_of(name: str, module: Quantized) -> PackedSpec:
    """Say how a quantized layer is packed; ValueError where it is not at full strength."""
    if module.strength is not None and float(module.strength) != 1.0:
        raise ValueError(
            f"pack: {name}: expected weights at full strength, got {float(module.strength):g}; train the stage to its "
            "end (a strength curve should reach 1), or set it with Ternarize(strength=1.0)"
        )
    per, columns = module.quantizer.per, module.latents[0].shape[0 if module.transposed else 1]
    group = per if isinstance(per, int) and per != columns else None
    return PackedSpec("split" if module.split else module.levels, group, module.activations)


def packed_tensors(module: Quantized) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bytes and scales of a quantized layer, rows as outputs. They give exactly its effective weight."""
    found = []
    scales = module.scales or [None] * len(module.latents)
    for latent, learned in zip(module.latents, scales, strict=True):
        rows = latent.detach().t() if module.transposed else latent.detach()
        levels, scale = module.quantizer.codes(rows, learned)
        if not bool(scale.isfinite().all()):
            raise ValueError("expected finite weights, got NaN or infinity among them")
        scale = scale.to(latent.dtype)  # rounded as in the effective weight
        # A scale for the whole matrix is repeated for each row, which takes four bytes a row.
        scale = scale.float().expand(rows.shape[0]) if scale.numel() == 1 else scale.float()
        found.append((pack_levels(levels, 1 if module.levels == "binary" else 2), scale.reshape(rows.shape[0], -1)))
    if not module.split:
        return found[0][0], found[0][1].contiguous()
    return torch.stack([weight for weight, _ in found]), torch.stack([scale for _, scale in found])


def round_to_int8(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to int8, with a scale for each row."""
    values = table.detach().float()
    if not bool(values.isfinite().all()):
        raise ValueError("expected finite weights, got NaN or infinity among them")
    scale = values.abs().amax(-1, keepdim=True) / 127
    return (values / scale.clamp(min=1e-30)).round().to(torch.int8), scale


def _packed_quantized(module: Any, spec: PackedSpec, done: dict[int, Packed]) -> nn.Module:
    key = id(module.latents[0])
    if key not in done:
        done[key] = _frozen_parameters(*packed_tensors(module))
    weight, scale = done[key]
    if isinstance(module, nn.Embedding):
        return packed_embedding_for(module, spec, weight, scale)
    clip = module._parameters.get(CLIP)
    return packed_linear_for(module, spec, weight, scale, clip, module.transposed)


def _packed_int8(module: Any, done: dict[int, Packed]) -> nn.Module:
    key, spec = id(module.weight), PackedSpec("int8")
    if key not in done:
        done[key] = _frozen_parameters(*round_to_int8(module.weight))
    weight, scale = done[key]
    if isinstance(module, nn.Embedding):
        return packed_embedding_for(module, spec, weight, scale)
    return packed_linear_for(module, spec, weight, scale)


def packed_linear_for(
    module: Any,
    spec: PackedSpec,
    weight: Any = None,
    scale: Any = None,
    clip: Any = None,
    transposed: bool | None = None,
) -> PackedLinear:
    """Make the packed layer that replaces a linear layer, with its bias. Without ``weight`` it is left empty."""
    if transposed is None:
        transposed = isinstance(module, Conv1D)
    columns, rows = (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
    device = (module.weight if weight is None else weight).device
    own = PackedLinear(
        columns,
        rows,
        spec,
        bias=False if module.bias is None else nn.Parameter(module.bias.detach(), requires_grad=False),
        weight=weight,
        scale=scale,
        clip=clip,
        transposed=transposed,
        device=device,
    )
    return own.train(module.training)


def packed_embedding_for(
    module: Any, spec: PackedSpec, weight: nn.Parameter | None = None, scale: nn.Parameter | None = None
) -> PackedEmbedding:
    """Make the packed layer that replaces an embedding. Without ``weight`` it is left empty."""
    factor: Any = getattr(module, "embed_scale", None)
    rounded = isinstance(factor, torch.Tensor)
    if rounded:  # on the meta device only another attribute has its value
        factor = module.scalar_embed_scale if hasattr(module, "scalar_embed_scale") else float(factor)
    like: Any = module.latents[0] if isinstance(module, Quantized) else module.weight
    made = PackedEmbedding(
        module.num_embeddings,
        module.embedding_dim,
        spec,
        padding_idx=module.padding_idx,
        embed_scale=factor,
        rounded_scale=rounded,
        weight=weight,
        scale=scale,
        device=like.device,
        dtype=like.dtype,
    )
    return made.train(module.training)


def _plain_layer(module: Any, weight: nn.Parameter) -> nn.Module:
    own: Any
    if isinstance(module, PackedEmbedding):
        own = (nn.Embedding if module.embed_scale is None else _ScaledEmbedding)(1, 1, device="meta")
        own.num_embeddings, own.embedding_dim = weight.shape
        own.padding_idx = module.padding_idx
        own.embed_scale, own.rounded_scale = module.embed_scale, module.rounded_scale
    elif module.transposed:
        own = Conv1D(1, 1)
        own.nf, own.nx = weight.shape
        weight = nn.Parameter(weight.detach().t().contiguous())
    else:
        own = nn.Linear(1, 1, False, device="meta")
        own.out_features, own.in_features = weight.shape
    if isinstance(module, PackedLinear):
        own.bias = None if module.bias is None else nn.Parameter(module.bias.detach())
    own.weight = weight
    return own.train(module.training)


class _ScaledEmbedding(nn.Embedding):
    """An embedding that scales its output, in place of BART's and Gemma's own classes, which are not known here."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return apply_embed_scale(super().forward(input), self.embed_scale, self.rounded_scale)


def _replace_modules(model: Any, made: Callable[[str, Any], nn.Module | None]) -> None:
    """Replace each module by what ``made`` returns for it, wherever it is used; None leaves it."""
    for name, module in list(model.named_modules()):
        new = made(name, module)
        if new is not None:
            for parent, key in holders_of(model, {id(module)}):
                parent._modules[key] = new


def _frozen_parameters(weight: torch.Tensor, scale: torch.Tensor) -> Packed:
    return nn.Parameter(weight.view(torch.int8), requires_grad=False), nn.Parameter(scale, requires_grad=False)


def _models_in(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def _expand_ties(model: Any) -> None:
    for inner in _models_in(model):
        if hasattr(inner, "all_tied_weights_keys"):
            inner.all_tied_weights_keys = inner.get_expanded_tied_weights_keys(all_submodels=True)
