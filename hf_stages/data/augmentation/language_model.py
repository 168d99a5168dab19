"""Loads and checks the model and tokenizer of an augmentation, and identifies them by content without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_stages.core.fingerprint import fingerprint, is_model
from hf_stages.core.sealed_folders import checksum_file
from hf_stages.models.checksums import checksum_of

_READ = (".json", ".safetensors", ".bin", ".txt", ".model")
"""Ends of the files in a model's folder that decide what it computes."""


def load(model: Any, tokenizer: Any, *, masked: bool, device: str | None) -> tuple[Any, Any]:
    """Return the model in evaluation mode, and its tokenizer. A model given as an object stays on its device."""
    tokenizer = model if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if masked and getattr(tokenizer, "mask_token_id", None) is None:
        raise ValueError(
            f"Augment: tokenizer: {_class_name(tokenizer)} has no mask token, so its model fills no gaps; give a "
            "masked language model (BERT, RoBERTa), or method='embeddings'"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"Augment: tokenizer: expected a fast one, which says where tokens stand, got {_class_name(tokenizer)}"
        )
    if isinstance(model, str | Path):
        model = _from_path(model, masked, device)
    _check(model, tokenizer, masked)
    return model, tokenizer


def _from_path(path: str | Path, masked: bool, device: str | None) -> Any:
    import torch
    import transformers

    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModel
    model, info = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    if masked and info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:2])
        raise ValueError(
            f"Augment: model: {path} has no masked-LM head ({missing} would be random); give a checkpoint that has "
            "one, or method='embeddings'"
        )
    place = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(place)


def _check(model: Any, tokenizer: Any, masked: bool) -> None:
    if masked and (not _predicts_masked_tokens(model) or model.get_output_embeddings() is None):
        raise ValueError(
            f"Augment: model: {_class_name(model)} does not predict masked tokens; give an AutoModelForMaskedLM, or "
            "method='embeddings'"
        )
    rows, pad = model.get_input_embeddings().weight.shape[0], getattr(model.config, "pad_token_id", None)
    own = tokenizer.pad_token_id
    if len(tokenizer) > rows:
        found = f"the tokenizer has {len(tokenizer)} tokens, the model {rows}"
    elif pad is not None and own is not None and pad != own:
        found = f"padding is token {own} of the tokenizer, {pad} of the model"
    else:
        return
    raise ValueError(f"Augment: tokenizer: not the model's own: {found}; give the one it was trained with")


def _predicts_masked_tokens(model: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as known

    names = {cls.__name__ for cls in type(model).__mro__}
    return any(name.endswith("ForMaskedLM") for name in names) or not names.isdisjoint(known.values())


def longest_input(model: Any, tokenizer: Any, max_length: int) -> int:
    """Return ``max_length``, or fewer where the model has fewer positions.

    RoBERTa's begin after the padding token's number.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return min(max_length, limit, tokenizer.model_max_length)


def identity_of(thing: Any) -> str | None:
    """Return a text that is equal for equal models, tokenizers and files. A name on the Hub is known by its commit."""
    if thing is None:
        return None
    if is_model(thing):
        return checksum_of(thing)
    if not isinstance(thing, str | Path):
        return fingerprint(thing)
    path = Path(thing)
    if path.is_file():
        return checksum_file(path)
    if path.is_dir():
        return fingerprint({f.name: checksum_file(f) for f in path.iterdir() if f.is_file() and f.suffix in _READ})
    return f"{thing}@{_commit(str(thing))}"


def _commit(name: str) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        return extract_commit_hash(cached_file(name, "config.json"), None)
    except OSError as error:
        raise ValueError(f"Augment: {name!r} is no folder here, and could not be had from the Hub: {error}") from error


def _class_name(value: Any) -> str:
    return type(value).__name__
