"""A batch as a model takes it when it is to compute no loss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils.generic import find_labels

from hf_stages.layers.blocks import base_of
from hf_stages.losses._on_source import SOURCE


def model_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Without labels; a decoder that would have made its inputs from them is given those inputs."""
    base = base_of(model)
    withheld = {*find_labels(type(base)), "labels", "shift_labels", SOURCE}
    inputs = {key: value for key, value in batch.items() if key not in withheld}
    makes = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    labels = batch.get("labels")
    if (
        makes is not None
        and torch.is_tensor(labels)
        and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    ):
        inputs["decoder_input_ids"] = makes(labels)
    parameters = inspect.signature(base.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return inputs
    return {key: value for key, value in inputs.items() if key in {p.name for p in parameters}}


def columns_of(model: Any) -> frozenset[str]:
    """Columns of a dataset that the model takes, labels among them: what Trainer keeps."""
    base = base_of(model)
    return frozenset(
        {*inspect.signature(base.forward).parameters, *find_labels(type(base)), "labels", "label", "label_ids"}
    )
