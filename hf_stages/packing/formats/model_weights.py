"""A stage's model as an exporter reads it: each weight once, and nothing left over."""

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
from hf_stages.packing.convert import spec_of, tensors_of
from hf_stages.packing.pack_folder import read

Array = np.ndarray[Any, Any]
Half = tuple[Array, Array]


@dataclass(frozen=True)
class Levels:
    """A quantized weight, rows as outputs or as entries of a table."""

    kind: str
    """``binary``, ``ternary``, or ``split``: two binary ones, added up."""
    halves: tuple[Half, ...]
    """Levels -1, 0 and 1 (int8, rows x columns) with scales (float32, rows x groups); of a split weight two such pairs."""
    activations: Activations | None = None
    clip: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.halves[0][0].shape
        return rows, columns

    @property
    def group(self) -> int:
        """So many neighbours in a row share a scale."""
        return self.shape[1] // self.halves[0][1].shape[1]

    def dense(self) -> Array:
        """The weight that was trained, in float32."""
        parts = [levels * np.repeat(scale, self.group, axis=1) for levels, scale in self.halves]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def reordered(self, order: Array) -> Levels:
        """With its rows in another order."""
        return replace(self, halves=tuple((levels[order], scale[order]) for levels, scale in self.halves))


Weight = Levels | Array


class Source:
    """The model of a stage folder. ``weight``, ``bias`` and ``vector`` tick off what they give; ``done`` refuses a rest."""

    def __init__(self, folder: Path, who: str, classes: tuple[str, ...]) -> None:
        self.who = who
        self.model, self.files = read(Path(folder))
        kind = type(self.model).__name__
        if kind not in classes:
            merge = "; merge its adapter first (MergeLora)" if "Peft" in kind else ""
            raise ValueError(f"{who}: expected one of {', '.join(classes)}, got a {kind}{merge}")
        if record_of(self.model.config) is not None:
            raise ValueError(
                f"{who}: expected a plain {kind}, got one with norms or other parts that its architecture lacks "
                "(InsertSubLN); no program that reads this format knows it"
            )
        if not any(isinstance(module, Quantized) for module in self.model.modules()):
            raise ValueError(
                f"{who}: has no quantized layers; train the stage with Ternarize or Binarize, or use the tools of "
                "the format itself, which convert full-precision models"
            )
        self._left = {id(p): name for name, p in self.model.named_parameters()}

    def weight(self, path: str) -> Weight:
        """Of a linear layer or a table."""
        module: Any = self.model.get_submodule(path)
        if isinstance(module, Quantized):
            self._tick(*module.latents, *module.scales, module._parameters.get(CLIP))
            return levels_of(path, module)
        if type(module) not in (nn.Linear, nn.Embedding):
            raise ValueError(f"{self.who}: {path}: expected a linear layer or a table, got a {type(module).__name__}")
        return self.vector(f"{path}.weight")

    def bias(self, path: str) -> Array | None:
        return None if self.model.get_submodule(path).bias is None else self.vector(f"{path}.bias")

    def vector(self, name: str) -> Array:
        """Any parameter by its name, in float32."""
        parameter = self.model.get_parameter(name)
        self._tick(parameter)
        values = parameter.detach().float().numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"{self.who}: {name}: expected finite weights, got NaN or infinity among them")
        return values

    def skip(self, path: str) -> None:
        """What the format has no place for."""
        self._tick(*self.model.get_submodule(path).parameters())

    def done(self) -> None:
        if self._left:
            names = list(self._left.values())
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{self.who}: does not know what to do with {shown}; this architecture was changed")

    def _tick(self, *parameters: Any) -> None:
        for parameter in parameters:
            self._left.pop(id(parameter), None)


def levels_of(path: str, module: Quantized) -> Levels:
    spec = spec_of(path, module)
    with place_errors(path):
        packed, scales = tensors_of(module)
    columns = module.latents[0].shape[0 if module.transposed else 1]
    levels = unpack_levels(packed, spec.bits, columns).numpy()
    if spec.levels == "split":
        halves: tuple[Half, ...] = tuple(zip(levels, scales.numpy(), strict=True))
    else:
        halves = ((levels, scales.numpy()),)
    clip = module._parameters.get(CLIP)
    return Levels(spec.levels, halves, spec.activations, None if clip is None else clip.detach())


def need(package: str, who: str, extra: str) -> None:
    """Before the run, not at the end of a stage."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{who} needs the package {package}: pip install 'hf_stages[{extra}]'")


def new_file(out: Path, name: str, who: str) -> Path:
    """Two exporters of a stage write into one folder."""
    if (out / name).exists():
        raise ValueError(
            f"{who}: {out / name} is there already; choose another name, such as name='two{Path(name).suffix}'"
        )
    return out / name


def checked_name(name: str, ending: str, who: str) -> None:
    if not isinstance(name, str) or not name.endswith(ending) or "/" in name or "\\" in name:
        raise ValueError(f"{who}: name: expected a file's name that ends in {ending}, got {name!r}")
