"""Make room for more tokens, or cut some off the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class ResizeVocab(Transform):
    """The token embedding and the output head get ``to`` rows, rounded up to a multiple of ``multiple_of``.

    New rows are the mean of the old ones with a tiny spread: a new token then takes little probability from the old
    ones, while a random row may take nearly all (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Multiples
    of 64 suit tensor cores. Where a matrix changes its shape, its optimizer moments start anew.

    >>> ResizeVocab(multiple_of=64)
    ResizeVocab(to=None, multiple_of=64, mean_resizing=True)
    """

    to: int | None = None
    """Rows wanted, usually ``len(tokenizer)``; None: as many as now."""
    multiple_of: int | None = None
    """Such as 64, which suits GPUs. None: no rounding."""
    mean_resizing: bool = True
    """False: new rows are drawn as at the model's initialization."""

    def __post_init__(self) -> None:
        for key in ("to", "multiple_of"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"ResizeVocab: {key}: expected a whole number, at least 1, got {value!r}")
        if self.to is None and self.multiple_of is None:
            raise ValueError("ResizeVocab: expected to= (rows) or multiple_of=, got neither; for example to=32064")

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="ResizeVocab")
        embedding = _embedding(model)
        old, step = embedding.weight.shape[0], self.multiple_of or 1
        new = -(-(self.to or old) // step) * step
        if new != old:
            _check_layers(model, embedding)
            _check_special_tokens(model.config, old, new)
        trainable = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
        tied = _first_names(model)
        # The mean's spread is drawn from measured values, which the meta device does not have; shapes are all it needs.
        model.resize_token_embeddings(new, mean_resizing=self.mean_resizing and not embedding.weight.is_meta)
        # transformers keeps the flags of the weights but not that of the head's bias.
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(trainable.get(name, True))
        _untie(model, tied)
        return model


def _embedding(model: Any) -> nn.Embedding:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"ResizeVocab: expected a model with a token embedding, got a {type(model).__name__}, whose input "
            f"embedding is of type {type(embedding).__name__}"
        )
    return embedding


def _first_names(model: nn.Module) -> dict[str, str]:
    """Map each parameter's name to the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def _untie(model: nn.Module, before: dict[str, str]) -> None:
    """Part BERT's two untied output biases again: transformers 5.23 makes one tensor of them, and saving loses one."""
    for name, first in _first_names(model).items():
        if before[name] != before[first]:
            parent, _, leaf = name.rpartition(".")
            shared = model.get_parameter(name)
            setattr(model.get_submodule(parent), leaf, nn.Parameter(shared.detach().clone(), shared.requires_grad))


def _check_layers(model: Any, embedding: nn.Embedding) -> None:
    """Refuse layers of other classes: transformers resizes ``weight`` alone and builds a plain ``nn.Linear`` head."""
    extra = [name for name, _ in embedding.named_parameters() if name != "weight"]
    head = model.get_output_embeddings()
    if extra or type(head) not in (type(None), nn.Linear, type(embedding)):
        odd = embedding if extra else head
        raise ValueError(
            f"ResizeVocab: expected a plain embedding and head, got a {type(odd).__name__}; put ResizeVocab before the "
            "transform which made it"
        )


def _check_special_tokens(config: Any, old: int, new: int) -> None:
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        ids = getattr(config, key, None)
        for token in ids if isinstance(ids, list | tuple) else [ids]:
            if token is not None and new <= token < old:
                raise ValueError(
                    f"ResizeVocab: to {new} rows, but config.{key} is {token}; expected at least {token + 1}"
                )
