"""Tied weights under the names that they have after quantizing, for transformers, which ties and saves by name."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hf_stages.layers.quantized import Quantized


def rename_ties(model: Any) -> None:
    """``lm_head.weight`` tied to the embedding's becomes ``lm_head.weight_latent``, in this model alone.

    transformers ties again whenever it resizes or builds upon a model, and leaves one of two tied names out of files.
    """
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for module in inner:
        declared = module._tied_weights_keys
        if not declared or not getattr(module.config, "tie_word_embeddings", False):
            continue
        pairs: dict[str, str] = {}
        for target, source in declared.items():
            ours, theirs = _names_of(module, target), _names_of(module, source)
            if len(ours) != len(theirs) or (ours == [target]) != (theirs == [source]):
                plain, quantized = (target, source) if ours == [target] else (source, target)
                raise ValueError(
                    f"tied weights: the config of {type(module).__name__} ties {plain} to {quantized}, which is quantized; "
                    "quantize both or neither (Ternarize(embeddings=False)), or set tie_word_embeddings=False"
                )
            pairs.update(zip(ours, theirs, strict=True))
            if ours != [target]:
                # Its effective weight, too, is stored under the source's name alone.
                owner: Any = module.get_submodule(target.rpartition(".")[0])
                owner._tied_weights_keys = {"weight": source}
        module._tied_weights_keys = pairs
    for module in inner:
        if hasattr(module, "all_tied_weights_keys"):
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)


def _names_of(model: Any, name: str) -> list[str]:
    """What a tied parameter is called now: several where it was split, or has learned scales."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:  # a pattern: transformers looks it up among the names there are
        return [name]
    if not isinstance(owner, Quantized) or leaf.partition("_")[0] != "weight":
        return [name]
    return [f"{path}.{part}" for part in (*owner.latent_names, *owner.scale_names)]
