"""The ways to run a model that ``hf-stages bench`` compares, each made from the same folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from hf_stages.core.sealed_folders import STAGE_FILE
from hf_stages.layers.quantized import Quantized
from hf_stages.models.own_models import read
from hf_stages.models.stage_models import load_stage
from hf_stages.packing.convert import pack_in_place, unpack_layers
from hf_stages.packing.packed_weight import PackedWeight


def load(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the model of a stage folder, of a packed one, or of any that transformers wrote; ValueError without one."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a model's folder, and there is none")
    if not any((folder / name).is_file() for name in ("config.json", STAGE_FILE)):
        adapter = (folder / "adapter_config.json").is_file()
        mend = "it holds an adapter alone; merge it first (MergeLora)" if adapter else "there is no config.json in it"
        raise ValueError(f"{folder}: expected a model's folder; {mend}")
    try:
        if (folder / STAGE_FILE).is_file():
            return load_stage(folder, trust_remote_code=trust_remote_code)[0]
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        known = [getattr(transformers, name, None) for name in config.architectures or ()]
        kind = next((cls for cls in known if cls is not None), transformers.AutoModel)
        return read(kind, folder, config=config, trust_remote_code=trust_remote_code).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: the model in it cannot be loaded: {error}") from error


@dataclass(frozen=True)
class Way:
    """A way to run a model. The first two are made from the model as loaded, the others from its plain fp32 form."""

    name: str
    make: Callable[[Any], Any]


class _NotHere(Exception):
    """This way would be the same as another one for this model."""


def _as_loaded(model: Any) -> Any:
    plain = not any(isinstance(m, Quantized | PackedWeight) for m in model.modules()) and not _quantized_elsewhere(
        model
    )
    if plain or any(isinstance(module, PackedWeight) for module in model.modules()):
        raise _NotHere
    return model


def _packed(model: Any) -> Any:
    if any(isinstance(module, PackedWeight) for module in model.modules()):
        return model
    if not any(isinstance(module, Quantized) for module in model.modules()):
        raise _NotHere
    made = copy.deepcopy(model)
    pack_in_place(made, torch.float32, "int8")
    return made


def _plain(model: Any) -> Any:
    """Return the dequantized model: ``nn.Linear`` with the effective weights, and activations that are not rounded."""
    made = copy.deepcopy(model)
    if any(isinstance(module, Quantized) for module in made.modules()):
        pack_in_place(made, torch.float32, None)
        unpack_layers(made, torch.float32)
    elif getattr(made, "hf_quantizer", None) is not None:
        made.dequantize(torch.float32)
    return made.float()


def _int8(plain: Any) -> Any:
    with warnings.catch_warnings():  # it says that it will be gone one day
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            _share_tensors(plain), {nn.Linear}, dtype=torch.qint8, inplace=True
        )


def _bitsandbytes(bits: int) -> Callable[[Any], Any]:
    def make(plain: Any) -> Any:
        import bitsandbytes

        bnb: Any = bitsandbytes.nn

        def eight(module: nn.Linear) -> Any:
            new = bnb.Linear8bitLt(
                module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False
            )
            new.load_state_dict(module.state_dict())
            return new.to("cpu")

        def four(module: nn.Linear) -> Any:
            sizes = module.in_features, module.out_features, module.bias is not None
            new = bnb.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
            new.weight = bnb.Params4bit(module.weight.data.clone(), requires_grad=False, quant_type="nf4")
            new.bias = module.bias
            return new.to("cpu")

        model = _share_tensors(plain)
        head = model.get_output_embeddings()  # which transformers leaves out too
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and module is not head:
                model.set_submodule(name, eight(module) if bits == 8 else four(module))
        return model.eval()

    return make


WAYS = {
    "own": Way("as loaded", _as_loaded),
    "packed": Way("packed", _packed),
    "fp32": Way("fp32", _plain),
    "bf16": Way("bf16", lambda plain: copy.deepcopy(plain).to(torch.bfloat16)),
    "int8": Way("torch int8, dynamic", _int8),
    "bnb8": Way("bitsandbytes 8-bit", _bitsandbytes(8)),
    "bnb4": Way("bitsandbytes 4-bit", _bitsandbytes(4)),
}


def make_models(model: Any, ways: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the models that could be made, and why others could not, as where a library is missing."""
    models: dict[str, Any] = {}
    absent: dict[str, str] = {}
    plain: Any = None
    try:
        plain = _plain(model)
    except Exception as error:
        absent = {
            way: f"cannot be dequantized: {describe_failure(error)}" for way in ways if way not in ("own", "packed")
        }
    for way in ways:
        if way in absent:
            continue
        try:
            models[way] = plain if way == "fp32" else WAYS[way].make(model if way in ("own", "packed") else plain)
        except _NotHere:
            continue
        except Exception as error:
            absent[way] = describe_failure(error)
    return models, absent


def _share_tensors(model: Any) -> Any:
    """Copy a model with modules of its own and the same tensors."""
    return copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})


def _quantized_elsewhere(model: Any) -> bool:
    """Tell whether transformers has quantized it, as it does what ``pack(portable=True)`` wrote."""
    return getattr(model, "hf_quantizer", None) is not None and not any(
        isinstance(module, PackedWeight) for module in model.modules()
    )


def resident_bytes(model: Any) -> int:
    """Count bytes of all tensors of its modules, those of other libraries too; shared memory counts once."""
    found: dict[Any, int] = {}
    seen: set[int] = set()

    def look(value: Any, depth: int) -> None:
        if depth > 4 or id(value) in seen or isinstance(value, nn.Module | str | type):
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, torch.ScriptObject):  # torch's own packed weights
            weight, bias = torch.ops.quantized.linear_unpack(value)
            found[id(value), "packed"] = weight.numel() + (0 if bias is None else bias.nbytes)
            return
        inner: Any = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        for item in [*inner, *getattr(value, "__dict__", {}).values()]:
            look(item, depth + 1)

    for module in model.modules():
        for held in vars(module).values():
            look(held, 0)
    return sum(found.values())


def describe_failure(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160]
