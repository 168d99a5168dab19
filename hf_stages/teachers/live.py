"""Runs teachers: each gives a stage's losses the signals that they need of a batch, and computes no more than that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_stages.core.randomness import preserve_random_state
from hf_stages.layers.blocks import base_of
from hf_stages.models.capture import Capture, evaluating
from hf_stages.models.model_inputs import model_inputs
from hf_stages.models.signals import Signals

BASE = "base"
"""The name of the student's own base model as a teacher, with its adapters off."""


class LiveTeacher:
    """Runs a model in evaluation mode without gradient. It is never trained, saved or wrapped.

    Where no loss reads its logits, it stops at the deepest layer that a loss reads. It gets no labels: a teacher that
    computes its own loss wastes time and may refuse labels of another shape. It uses no cache of keys and values: with
    one, models ignore that positions begin again, and packed examples would see each other.
    """

    answers_any_batch = True

    def __init__(self, model: nn.Module, needs: frozenset[str], device: torch.device) -> None:
        self._was = model.training, [p for p in model.parameters() if p.requires_grad]
        self._cached = [config for config in _configs_within(model) if getattr(config, "use_cache", None)]
        for config in self._cached:
            config.use_cache = False
        self.model = _move_to(model, device).eval().requires_grad_(False)
        self.capture = Capture(self.model, needs, stop=True)

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        self.model.eval()  # a user's callback may have set it to train
        return _run_without_gradient(self.model, self.capture, batch)

    def remove(self) -> None:
        """Give the model back in its earlier state. It stays on its device."""
        self.capture.remove()
        training, trained = self._was
        self.model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
        for config in self._cached:
            config.use_cache = True


class BaseTeacher:
    """Runs the student's own base with its adapter off, without a second copy of the weights."""

    answers_any_batch = True

    def __init__(self, model: nn.Module, needs: frozenset[str]) -> None:
        self.model = model
        head = getattr(base_of(model), "get_output_embeddings", lambda: None)()
        # A head that is run later would run with its adapter on.
        adapted = head is not None and any(hasattr(m, "_disable_adapters") for m in head.modules())
        self.capture = Capture(model, needs, stop=True, defer_head=not adapted)

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        with adapters_off(self.model), preserve_random_state():
            return _run_without_gradient(self.model, self.capture, batch)

    def remove(self) -> None:
        self.capture.remove()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Run the layers below every adapter, in evaluation mode.

    PEFT's own switch would also change which weights train.
    """
    switches = [m for m in model.modules() if hasattr(m, "_disable_adapters")]
    before = [m._disable_adapters for m in switches]
    for module in switches:
        module._disable_adapters = True
    try:
        with evaluating(model):
            yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module._disable_adapters = value


def _run_without_gradient(model: nn.Module, capture: Capture, batch: Mapping[str, Any]) -> Signals:
    inputs = model_inputs(model, batch)
    capture.check_head(lambda: model(**inputs))
    with torch.no_grad(), capture.collecting() as captured:
        outputs = capture.run(model, inputs)
    return Signals(outputs, captured=captured)


def _configs_within(model: nn.Module) -> list[Any]:
    """Return the model's own config, and those of models inside it."""
    found = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    return list(found.values())


def _move_to(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the model to the device. Quantized and dispatched models are in place already and cannot be moved."""
    if getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None) is not None:
        return model
    return model.to(device)
