"""How the folder of a stage with an adapter must be written, found out before training by trying to read it back.

The weights of the base are not needed for that.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import logging

from hf_stages.core.randomness import preserve_random_state
from hf_stages.models.adapters import (
    Layout,
    adapter_names,
    adapter_tensors,
    base_names,
    base_prefix,
    is_peft,
    layout_of,
    meta_copy,
    note_layout,
    plain_copy,
    structure_only_config,
)

logger = logging.get_logger(__name__)


def check_adapter(model: Any, where: str, *, sharded: bool = False) -> None:
    """Note on a PEFT model how it must be written. Refuse a model whose base cannot be told from its adapter."""
    if not is_peft(model):
        return
    if sharded and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{where}: {model.active_peft_config.peft_type.value}: expected DDP or one process: PEFT asks the encoder "
            "of prompts as it saves, and FSDP has it in shards then"
        )
    try:
        plain = plain_copy(model)
    except ValueError as error:
        kind = model.active_peft_config.peft_type.value
        raise ValueError(
            f"{where}: expected an adapter whose base can be saved on its own, got {kind}: {error}; use another kind "
            "of adapter"
        ) from error
    _refuse_shared(model, where)
    with preserve_random_state(), torch.no_grad():
        state = _state_with_drawn_adapter(model)
        layout = Layout(_why_stock_differs(model, plain, state), not _peft_reads_all_back(model, state))
    if layout.apart is not None and layout != layout_of(model):
        logger.warning(
            f"{where}: stock from_pretrained could not give this model ({layout.apart}); the stage's folder has base "
            "and adapter apart, in base/ and adapter/. StagedTrainer.from_stage reads it as it is, "
            "PeftModel.from_pretrained the two"
        )
    note_layout(model, layout)


def _refuse_shared(model: Any, where: str) -> None:
    """Refuse a base that uses one weight in several places (``layer_replication``) unless the model ties it itself."""
    base = model.get_base_model()
    tied = {name for pair in (getattr(base, "all_tied_weights_keys", None) or {}).items() for name in pair}
    own, places = base_names(model), dict[int, list[str]]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if own.get(name, "") not in {"", *tied}:
            places.setdefault(id(tensor), []).append(name)
    if shared := next((names for names in places.values() if len(names) > 1), None):
        raise ValueError(
            f"{where}: {' and '.join(shared[:2])} are one weight of the base (layer_replication?), and a folder cannot "
            "hold that; make the deeper model first, then put a plain adapter on it"
        )


def _state_with_drawn_adapter(model: Any) -> dict[str, torch.Tensor]:
    """Return the model's state with random values in each tensor of the adapter, and without values in the base."""
    made: dict[int, torch.Tensor] = {}
    own, state = set(adapter_names(model)), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in own:
            state[name] = torch.empty_like(tensor.detach(), device="meta")
            continue
        if id(tensor) not in made:
            drawn = tensor.is_floating_point() or tensor.is_meta
            made[id(tensor)] = torch.rand(tensor.shape).to(tensor.dtype) if drawn else tensor.detach().cpu()
        state[name] = made[id(tensor)]
    return state


def _why_stock_differs(model: Any, plain: Any, state: dict[str, torch.Tensor]) -> str | None:
    """Say why stock transformers, which finds an adapter beside a base, would not make this model of them."""
    if len(model.peft_config) > 1:
        return f"it has {len(model.peft_config)} adapters"
    name = next(iter(model.peft_config))
    config = structure_only_config(model.peft_config[name])
    if getattr(config, "alora_invocation_tokens", None):
        return "its adapter acts behind certain tokens of the input, for which PEFT alone looks"
    if not hasattr(plain, "load_adapter"):
        return f"{type(plain).__name__} loads no adapters"
    plain.hf_device_map = {"": "cpu"}  # says where the adapter's tensors go
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        plain.load_adapter(
            peft_config=config, adapter_state_dict=adapter_tensors(model, name, state), adapter_name=name
        )
    except Exception as error:  # a user would get the same error
        return str(error).partition("\n")[0]
    finally:
        logging.set_verbosity(verbosity)
    read = {f"{base_prefix(model)}{key}": tensor for key, tensor in plain.state_dict().items()}
    return _first_difference(model, state, read)


def _peft_reads_all_back(model: Any, state: dict[str, torch.Tensor]) -> bool:
    """Whether PEFT reads every tensor of the adapter back from its own file."""
    from peft import set_peft_model_state_dict

    empty = meta_copy(model, but=adapter_names(model))
    try:
        for name in model.peft_config:
            tensors = adapter_tensors(model, name, state)
            set_peft_model_state_dict(empty, tensors, adapter_name=name)
    except Exception as error:
        logger.info(f"{type(error).__name__}: {error}")
        return False
    return _first_difference(model, state, empty.state_dict()) is None


def _first_difference(model: Any, state: dict[str, torch.Tensor], read: dict[str, torch.Tensor]) -> str | None:
    for name in adapter_names(model):
        tensor = read.get(name)
        if tensor is None or tensor.is_meta or not torch.equal(tensor.cpu(), state[name]):
            return f"{name} would be another"
    return None
