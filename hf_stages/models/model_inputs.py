"""A batch as a model takes it where it should compute no loss."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.utils.generic import find_labels

from hf_stages.core.batch import SOURCE
from hf_stages.layers.blocks import base_of


def model_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without labels. A decoder that makes its inputs from labels is given these inputs."""
    base = base_of(model)
    withheld = {*find_labels(type(base)), "labels", "shift_labels", SOURCE}
    inputs = {key: value for key, value in batch.items() if key not in withheld}
    labels = batch.get("labels")
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    if torch.is_tensor(labels) and not given and _decodes(base):
        inputs["decoder_input_ids"] = _decoder_inputs(base)(labels)
    parameters = inspect.signature(base.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return inputs
    return {key: value for key, value in inputs.items() if key in {p.name for p in parameters}}


def columns_of(model: Any) -> frozenset[str]:
    """Return the columns of a dataset that the model takes, with its labels: those that Trainer keeps."""
    base = base_of(model)
    return frozenset(
        {*inspect.signature(base.forward).parameters, *find_labels(type(base)), "labels", "label", "label_ids"}
    )


def columns_for_teacher(student: Any, teacher: Any) -> frozenset[str]:
    """Return the columns that the teacher's forward takes and the student's does not.

    An example are the token types where a DistilBERT learns from a BERT. A column that the student takes is never left
    to the teacher alone, even if the trainer removes it from the dataset: collators make masks and positions.
    """
    return columns_of(teacher.model) - columns_of(student) if teacher is not None else frozenset()


def _decodes(base: Any) -> bool:
    """Whether a model has a decoder that generates the labels. A classifier's decoder reads the input again."""
    generates = getattr(base, "can_generate", None)
    encoder_decoder = bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))
    return encoder_decoder and (generates is None or bool(generates()))


def _decoder_inputs(base: Any) -> Callable[[torch.Tensor], Any]:
    """Return the function that makes a decoder's inputs from labels: the model's own, or the one its forward calls."""
    method = getattr(base, "prepare_decoder_input_ids_from_labels", None) or getattr(base, "_shift_right", None)
    if method is not None:
        return method
    modules = (sys.modules.get(cls.__module__) for cls in type(base).__mro__)
    shift = next((found for m in modules if (found := getattr(m, "shift_tokens_right", None)) is not None), None)
    if shift is None:
        raise ValueError(
            f"{type(base).__name__} makes its decoder's inputs from labels in a way of its own, and is run without "
            "labels here; let the data_collator give decoder_input_ids, or the model a method "
            "prepare_decoder_input_ids_from_labels(labels)"
        )
    names = list(inspect.signature(shift).parameters)[1:]
    return lambda labels: shift(labels, *(_setting(base.config, name) for name in names))


def _setting(config: Any, name: str) -> Any:
    """Return a config value such as ``pad_token_id``, of the model or of its text part."""
    value = getattr(config, name, None)
    return value if value is not None else getattr(config.get_text_config(decoder=True), name, None)
