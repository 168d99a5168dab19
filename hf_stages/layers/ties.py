"""Names of tied weights after quantizing. transformers ties and saves weights by their names."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hf_stages.layers.quantized import Quantized


def rename_ties(model: Any) -> None:
    """Rename the ties of a quantized model: ``lm_head.weight`` becomes ``lm_head.weight_latent``, in this model alone.

    transformers ties weights again when it resizes a model, and leaves one of two tied names out of files.
    """
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for module in inner:
        declared = module._tied_weights_keys
        if not declared or not getattr(module.config, "tie_word_embeddings", False):
            continue
        pairs: dict[str, str] = {}
        for target, source in declared.items():
            ours, theirs = _names_after_quantizing(module, target), _names_after_quantizing(module, source)
            if len(ours) != len(theirs) or (ours == [target]) != (theirs == [source]):
                plain, quantized = (target, source) if ours == [target] else (source, target)
                raise ValueError(
                    f"tied weights: the config of {type(module).__name__} ties {plain} to {quantized}, which is "
                    "quantized; quantize both or neither (Ternarize(embeddings=False)), or set "
                    "tie_word_embeddings=False"
                )
            pairs.update(zip(ours, theirs, strict=True))
            if ours != [target]:
                # Its effective weight is stored under the source's name alone, too.
                owner: Any = module.get_submodule(target.rpartition(".")[0])
                owner._tied_weights_keys = {"weight": source}
        module._tied_weights_keys = pairs
    for module in inner:
        if hasattr(module, "all_tied_weights_keys"):
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)


def _names_after_quantizing(model: Any, name: str) -> list[str]:
    """Return the names of a tied parameter after quantizing: several where it was split or has learned scales."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:  # a pattern, which transformers matches with the names itself
        return [name]
    if not isinstance(owner, Quantized) or leaf.partition("_")[0] != "weight":
        return [name]
    return [f"{path}.{part}" for part in (*owner.latent_names, *owner.scale_names)]
