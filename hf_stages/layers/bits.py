"""How many bits a packed model takes, over everything that is stored, by part of the model.

Levels take 1 bit (binary) or 2 bits (ternary; split layers 1 bit twice). Scales and weights that are not quantized take
16 bits, or 32 where a number says so. Embeddings are counted too: in BERT-base they are a fifth of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_stages.layers.blocks import base_of, stacks_of
from hf_stages.layers.quantizable import word_embeddings_of
from hf_stages.layers.storage import FULL, PartSize, StoredBits, StoredSize

WORDS, TABLES, EXPERTS, HEAD = "word embeddings", "other embeddings", "experts", "head"
OTHER, ADAPTERS, VECTORS, BUFFERS = "other layers", "adapters", "norms and biases", "buffers"


def stored_size(model: nn.Module) -> StoredSize:
    """Count the bits of a model on any device, the meta device included. Tied weights count once.

    A quantized layer counts as at full strength. A module may define ``stored_bits()`` to say what packing keeps of its
    parameters (see ``StoredBits``); all other parameters count as floating point. Raises ValueError where another
    library packed the weights, because what it stores beside them is not known.

    >>> from hf_stages.layers import BinaryLinear
    >>> size = stored_size(BinaryLinear(64, 32))  # 2048 one-bit weights, 32 scales, 32 biases
    >>> size.bytes, round(size.bits_per_weight, 2), round(size.ratio(), 1)
    (384, 1.48, 21.7)
    """
    place_of = part_of_parameters(model)
    parts: dict[str, PartSize] = {}
    for name, size in _stored_tensors(model, place_of):
        parts[name] = parts.get(name, PartSize()) + size
    order = list(dict.fromkeys([WORDS, TABLES, *_stack_parts(model), EXPERTS, OTHER, HEAD, ADAPTERS, VECTORS, BUFFERS]))
    return StoredSize({name: parts[name] for name in order if name in parts})


def stored_size_or_none(model: nn.Module) -> StoredSize | None:
    """Count the bits of a model; None where another library packed its weights."""
    try:
        return stored_size(model)
    except ValueError:
        return None


def stored_bits_of(module: Any) -> tuple[StoredBits, ...]:
    """Return what a module's own ``stored_bits()`` says; nothing where it has no such method."""
    # Looked up on the class: a wrapper may pass attributes of the wrapped module on, which would then count twice.
    return tuple(getattr(type(module), "stored_bits", lambda _: ())(module))


def _stored_tensors(model: nn.Module, place_of: dict[int, str]) -> Iterator[tuple[str, PartSize]]:
    """Yield every stored tensor once, with the part of the model that it belongs to."""
    counted: set[int] = set()
    for module in model.modules():
        for stored in stored_bits_of(module):
            own = [getattr(module, name) for name in stored.names]
            if id(own[0]) not in counted:
                counted.update(map(id, own))
                bits = stored.weights * stored.bits * stored.halves
                yield place_of[id(own[0])], PartSize(stored.weights, bits, stored.scales, {stored.label: 1})
    for name, parameter in model.named_parameters():
        if id(parameter) in counted:
            continue
        if not parameter.is_floating_point():
            raise ValueError(f"stored_size: {name}: expected weights in floating point, got {parameter.dtype}")
        place = place_of[id(parameter)] if parameter.dim() > 1 or place_of[id(parameter)] == ADAPTERS else VECTORS
        yield place, PartSize(parameter.numel(), 0, parameter.numel(), {FULL: 1})
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set or id(buffer) in counted:
                continue
            counted.add(id(buffer))
            if buffer.is_floating_point():
                yield BUFFERS, PartSize(buffer.numel(), 0, buffer.numel(), {FULL: 1})
            else:
                yield BUFFERS, PartSize(0, 8 * buffer.element_size() * buffer.numel(), 0, {FULL: 1})


def part_of_parameters(model: nn.Module) -> dict[int, str]:
    """Return the part of the model that each parameter belongs to, by the parameter's id."""
    base = base_of(model)
    words, output = word_embeddings_of(base), _output_of(base)
    inner = base.base_model if isinstance(base, PreTrainedModel) else base
    inside = {id(p) for p in inner.parameters()}
    blocks = {id(p): part for part, stack in _stack_parts(model).items() for p in stack.parameters()}
    places: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or places.get(id(parameter)) == WORDS:
                continue
            key, steps = id(parameter), f"{path}.{name}".lower().split(".")
            if id(module) in words:
                places[key] = WORDS
            elif key in places:
                continue
            elif any(step.startswith("lora_") for step in steps):
                places[key] = ADAPTERS
            elif isinstance(module, nn.Embedding):
                places[key] = TABLES
            elif key in blocks:
                places[key] = EXPERTS if "experts" in steps else blocks[key]
            elif key not in inside or module is output:
                places[key] = HEAD
            else:
                places[key] = TABLES if any("embed" in step for step in steps) else OTHER
    return places


def _stack_parts(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return each stack by its part's name: ``blocks``, or ``encoder blocks`` and ``decoder blocks``."""
    return {f"{name} blocks".strip(): blocks for name, (_, blocks) in stacks_of(model).items()}


def _output_of(base: Any) -> nn.Module | None:
    try:
        return base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
