"""What ``save_pretrained`` of a packed model leaves in its own files: a checksum of each tensor and of how it is packed.

It writes the config before the weights, and a seal is of both; the metadata of a safetensors file is what a quantizer may
write there. So a saved model is known to be whole wherever it goes, to the Hub too.
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
_MEND = "save or pack the model again, or download it anew; if the change is yours: hf_stages.packing.seal(folder)"


def marks(model: Any, quantization: Mapping[str, Any]) -> dict[str, str]:
    """For the files' metadata, of a model about to be saved."""
    found: dict[str, Any] = {"config": _digest_of(quantization)}
    ignored = set(model._keys_to_ignore_on_save or ())
    state = {name: value for name, value in model.state_dict().items() if name not in ignored}
    # What is sharded, or lies on a disk, is gathered later.
    if all(type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_meta for value in state.values()):
        forms = [state]
        if getattr(model, "_weight_conversions", None):  # read by other names: save_original_format writes those again
            forms.append(revert_weight_conversion(model, dict(state)))
        found["tensors"] = [{name: _digest(_bytes(value)) for name, value in form.items()} for form in forms]
    return {KEY: json.dumps(found, sort_keys=True)}


def check_marks(files: Sequence[str | Path], quantization: Mapping[str, Any]) -> bool:
    """ValueError where files are not as they were saved; False where they do not say."""
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
        raise ValueError(f"{where}: the metadata is damaged, or of another save; {_MEND}") from error
    if config != _digest_of(quantization):
        raise ValueError(f"config.json: quantization_config was changed after it was written; {_MEND}")
    if tensors is None:
        return False
    present = {name: (header.file, _digest(data)) for header in headers for name, data in header.data()}
    nearest = sorted(tensors, key=lambda form: len(present.keys() - form.keys()))
    problems = [_problem(present, form) for form in nearest]
    if all(problems):
        raise ValueError(f"{problems[0]}; {_MEND}")
    return True


def _problem(present: Mapping[str, tuple[Path, str]], form: Mapping[str, str]) -> str | None:
    """What files hold, against what was written."""
    for name, (file, digest) in present.items():
        if name not in form:
            return f"{file}: {name} was not there when it was written"
        if digest != form[name]:
            return f"{file}: {name} was changed after it was written (its checksum differs)"
    kept = {digest for _, digest in present.values()}
    # Of tied tensors one is stored.
    lost = next((name for name in form if name not in present and form[name] not in kept), None)
    return None if lost is None else f"{lost} is missing from the checkpoint"


def check_names(model: Any, files: Sequence[str | Path]) -> None:
    """ValueError where files that do not say what they held lack a tensor of the model, or have one too many."""
    if type(model).__name__ not in (model.config.architectures or ()) or _translated(model):
        return  # another head's: transformers draws what is new and says so
    present = {name for file in files for name in header_of(Path(file)).entries}
    state = model.state_dict(keep_vars=True)
    same: dict[str, int] = {name: id(value) for name, value in state.items()}
    for target, source in model.all_tied_weights_keys.items():
        same[target] = same.get(source, -1)
    stored = {same[name] for name in present if name in same}
    missing = [name for name in state if name not in present and same[name] not in stored]
    patterns = {*(model._keys_to_ignore_on_load_unexpected or ()), r"(^|\.)position_ids$", r"rotary_emb\.inv_freq"}
    left = {"missing from": _not(missing, {*(model._keys_to_ignore_on_load_missing or ())})}
    left["not of this model, but in"] = _not(sorted(present - same.keys()), patterns)
    for what, names in left.items():
        if names:
            raise ValueError(f"{names[0]} is {what} the checkpoint of a {type(model).__name__}; {_MEND}")


def _translated(model: Any) -> bool:
    """Whether transformers reads this architecture's weights by other names."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _not(names: Iterable[str], patterns: set[str]) -> list[str]:
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


def _digest_of(quantization: Mapping[str, Any]) -> str:
    return _digest(json.dumps(quantization, sort_keys=True).encode())


def _digest(data: Any) -> str:
    return xxhash.xxh3_64(data).hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
