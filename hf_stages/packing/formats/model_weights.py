"""The weights of a stage's model for an exporter, which must read every one of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.activations import Activations
from hf_stages.layers.own_type import record_of
from hf_stages.layers.packed_levels import unpack_levels
from hf_stages.layers.quantized import CLIP, Quantized
from hf_stages.packing.convert import packed_tensors, spec_of
from hf_stages.packing.pack_folder import read_stage

Array = np.ndarray[Any, Any]
Half = tuple[Array, Array]


@dataclass(frozen=True)
class Levels:
    """A quantized weight. Rows are outputs, or entries of an embedding.

    >>> levels = np.array([[1, -1, 0, 1]], np.int8), np.array([[0.5]], np.float32)
    >>> Levels("ternary", (levels,)).dense()
    array([[ 0.5, -0.5,  0. ,  0.5]], dtype=float32)
    """

    kind: str
    """``binary``, ``ternary``, or ``split`` (the sum of two binary weights)."""
    halves: tuple[Half, ...]
    """Levels -1, 0 and 1 (int8, rows x columns) and scales (float32, rows x groups); two such pairs if split."""
    activations: Activations | None = None
    """How the layer's input is rounded; None: it is not."""
    clip: torch.Tensor | None = None
    """The learned range of activations."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.halves[0][0].shape
        return rows, columns

    @property
    def group(self) -> int:
        """How many neighbours in a row share a scale."""
        return self.shape[1] // self.halves[0][1].shape[1]

    def dense(self) -> Array:
        """Compute the effective weight in float32."""
        parts = [levels * np.repeat(scale, self.group, axis=1) for levels, scale in self.halves]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def reordered(self, order: Array) -> Levels:
        """Return the weight with its rows in another order."""
        return replace(self, halves=tuple((levels[order], scale[order]) for levels, scale in self.halves))


Weight = Levels | Array


class WeightReader:
    """Reads the model of a stage folder. ``check_all_read`` refuses a model of which a weight was not read.

    Args:
        folder: The stage folder.
        who: The exporter's name, for error messages.
        classes: The model classes that the exporter knows.
    """

    def __init__(self, folder: Path, who: str, classes: tuple[str, ...]) -> None:
        self.who = who
        self.model, self.files = read_stage(Path(folder))
        check_model(self.model, who, classes)
        self._unread = {id(p): name for name, p in self.model.named_parameters()}

    def weight(self, path: str) -> Weight:
        """Read the weight of a linear layer or an embedding."""
        module: Any = self.model.get_submodule(path)
        if isinstance(module, Quantized):
            self._mark_read(*module.latents, *module.scales, module._parameters.get(CLIP))
            return levels_of(path, module)
        if type(module) not in (nn.Linear, nn.Embedding):
            raise ValueError(f"{self.who}: {path}: expected a linear layer or a table, got a {type(module).__name__}")
        return self.vector(f"{path}.weight")

    def bias(self, path: str) -> Array | None:
        """Read the bias of a linear layer; None where it has none."""
        return None if self.model.get_submodule(path).bias is None else self.vector(f"{path}.bias")

    def vector(self, name: str) -> Array:
        """Read any parameter by its name, in float32."""
        parameter = self.model.get_parameter(name)
        self._mark_read(parameter)
        values = parameter.detach().float().numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"{self.who}: {name}: expected finite weights, got NaN or infinity among them")
        return values

    def skip(self, path: str) -> None:
        """Leave out a module that the format cannot hold."""
        self._mark_read(*self.model.get_submodule(path).parameters())

    def check_all_read(self) -> None:
        """Refuse a model with weights that were neither read nor skipped."""
        if self._unread:
            names = list(self._unread.values())
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{self.who}: does not know what to do with {shown}; this architecture was changed")

    def _mark_read(self, *parameters: Any) -> None:
        for parameter in parameters:
            self._unread.pop(id(parameter), None)


def check_model(model: Any, who: str, classes: tuple[str, ...]) -> None:
    """Refuse a model that a format cannot hold, as far as its structure tells: it may be on the meta device."""
    kind = type(model).__name__
    if kind not in classes:
        merge = "; merge its adapter first (MergeLora)" if "Peft" in kind else ""
        raise ValueError(f"{who}: expected one of {', '.join(classes)}, got a {kind}{merge}")
    if record_of(model.config) is not None:
        raise ValueError(
            f"{who}: expected a plain {kind}, got one with norms or other parts that its architecture lacks "
            "(InsertSubLN, MakeRecurrent); no program that reads this format knows it"
        )
    if not any(isinstance(module, Quantized) for module in model.modules()):
        raise ValueError(
            f"{who}: has no quantized layers; train the stage with Ternarize or Binarize, or use the tools of "
            "the format itself, which convert full-precision models"
        )


def levels_of(path: str, module: Quantized) -> Levels:
    """Read the levels and scales of a quantized layer."""
    spec = spec_of(path, module)
    with place_errors(path):
        packed, scales = packed_tensors(module)
    columns = module.latents[0].shape[0 if module.transposed else 1]
    levels = unpack_levels(packed, spec.bits, columns).numpy()
    if spec.levels == "split":
        halves: tuple[Half, ...] = tuple(zip(levels, scales.numpy(), strict=True))
    else:
        halves = ((levels, scales.numpy()),)
    clip = module._parameters.get(CLIP)
    return Levels(spec.levels, halves, spec.activations, None if clip is None else clip.detach())


def require_package(package: str, who: str, extra: str) -> None:
    """Refuse an exporter whose package is not installed: before the run, not at the end of a stage."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{who} needs the package {package}: pip install 'hf_stages[{extra}]'")


def new_file_in(out: Path, name: str, who: str) -> Path:
    """Return the path of a new file. Two exporters of a stage write to one folder, so it may exist already."""
    if (out / name).exists():
        raise ValueError(
            f"{who}: {out / name} is there already; choose another name, such as name='two{Path(name).suffix}'"
        )
    return out / name


def check_file_name(name: str, ending: str, who: str) -> None:
    """Refuse what is no name of a file with that ending."""
    if not isinstance(name, str) or not name.endswith(ending) or "/" in name or "\\" in name:
        raise ValueError(f"{who}: name: expected a file's name that ends in {ending}, got {name!r}")
