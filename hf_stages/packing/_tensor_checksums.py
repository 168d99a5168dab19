"""Checksums of tensors in the files that ``save_pretrained`` of a packed model writes.

They are in the metadata of the safetensors files, where a quantizer may write. A seal is not possible there: it covers
the config too, which is written before the weights. With checksums a saved model can be checked wherever it goes, on
the Hub too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers.core_model_loading import revert_weight_conversion

from hf_stages.packing._header import header_of

KEY = "hf_stages"
_HOW_TO_MEND = (
    "save or pack the model again, or download it anew; if the change is yours: hf_stages.packing.seal(folder)"
)


def tensor_checksums(model: Any, quantization: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata for the files of a model that is about to be saved."""
    found: dict[str, Any] = {"config": _digest_of(quantization)}
    ignored = set(model._keys_to_ignore_on_save or ())
    state = {name: value for name, value in model.state_dict().items() if name not in ignored}
    # Tensors that are sharded or on a disk are gathered later, and get no checksums.
    if all(type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_meta for value in state.values()):
        forms = [state]
        if getattr(
            model, "_weight_conversions", None
        ):  # read under other names, which save_original_format writes again
            forms.append(revert_weight_conversion(model, dict(state)))
        found["tensors"] = [{name: _digest(_bytes(value)) for name, value in form.items()} for form in forms]
    return {KEY: json.dumps(found, sort_keys=True)}


def check_tensor_checksums(files: Sequence[str | Path], quantization: Mapping[str, Any]) -> bool:
    """Refuse files that changed after they were saved; return False where they have no checksums."""
    headers = [header_of(Path(file)) for file in files]
    written = {header.metadata.get(KEY) for header in headers}
    if written == {None}:
        return False
    where = ", ".join(str(header.file) for header in headers)
    try:
        (own,) = written
        found = json.loads(own or "")
        config, tensors = found["config"], found.get("tensors")
        if tensors is not None and not (tensors and all(isinstance(form, dict) for form in tensors)):
            raise ValueError("tensors: expected checksums by name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: the metadata is damaged, or of another save; {_HOW_TO_MEND}") from error
    if config != _digest_of(quantization):
        raise ValueError(f"config.json: quantization_config was changed after it was written; {_HOW_TO_MEND}")
    if tensors is None:
        return False
    present = {name: (header.file, _digest(data)) for header in headers for name, data in header.data()}
    nearest = sorted(tensors, key=lambda form: len(present.keys() - form.keys()))
    problems = [_problem(present, form) for form in nearest]
    if all(problems):
        raise ValueError(f"{problems[0]}; {_HOW_TO_MEND}")
    return True


def _problem(present: Mapping[str, tuple[Path, str]], form: Mapping[str, str]) -> str | None:
    """Say how the tensors in the files differ from those that were written; None where they do not."""
    for name, (file, digest) in present.items():
        if name not in form:
            return f"{file}: {name} was not there when it was written"
        if digest != form[name]:
            return f"{file}: {name} was changed after it was written (its checksum differs)"
    digests = {digest for _, digest in present.values()}
    # Of several tied tensors only one is stored.
    lost = next((name for name in form if name not in present and form[name] not in digests), None)
    return None if lost is None else f"{lost} is missing from the checkpoint"


def check_tensor_names(model: Any, files: Sequence[str | Path]) -> None:
    """Refuse files without checksums that lack a tensor of the model, or have one too many."""
    if type(model).__name__ not in (model.config.architectures or ()) or _has_renamed_weights(model):
        return  # another head: transformers draws what is new and warns
    present = {name for file in files for name in header_of(Path(file)).entries}
    state = model.state_dict(keep_vars=True)
    same: dict[str, int] = {name: id(value) for name, value in state.items()}
    for target, source in model.all_tied_weights_keys.items():
        same[target] = same.get(source, -1)
    stored = {same[name] for name in present if name in same}
    missing = [name for name in state if name not in present and same[name] not in stored]
    patterns = {*(model._keys_to_ignore_on_load_unexpected or ()), r"(^|\.)position_ids$", r"rotary_emb\.inv_freq"}
    left = {"missing from": _matching_none(missing, {*(model._keys_to_ignore_on_load_missing or ())})}
    left["not of this model, but in"] = _matching_none(sorted(present - same.keys()), patterns)
    for what, names in left.items():
        if names:
            raise ValueError(f"{names[0]} is {what} the checkpoint of a {type(model).__name__}; {_HOW_TO_MEND}")


def _has_renamed_weights(model: Any) -> bool:
    """Whether transformers reads this architecture's weights under other names."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _matching_none(names: Iterable[str], patterns: set[str]) -> list[str]:
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


def _digest_of(quantization: Mapping[str, Any]) -> str:
    return _digest(json.dumps(quantization, sort_keys=True).encode())


def _digest(data: Any) -> str:
    return xxhash.xxh3_64(data).hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
