"""The size of a packed model on disk, by part, read from its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_stages.layers.bits import BUFFERS, OTHER, VECTORS, part_of_parameters
from hf_stages.packing._header import header_of
from hf_stages.packing.packed_weight import PackedWeight

HEADERS = "file headers"


@dataclass(frozen=True)
class PackedSize:
    """The bytes of the files of weights, by part of the model.

    >>> size = PackedSize({"blocks": 1024, "file headers": 128}, weights=4096)
    >>> size.bytes, size.bits_per_weight
    (1152, 2.25)
    """

    parts: Mapping[str, int]
    """Bytes of each part, by its name."""
    weights: int
    """The number of effective weights; tied weights count once."""

    @property
    def bytes(self) -> int:
        """The size of all parts."""
        return sum(self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """All bits over all weights."""
        return 8 * self.bytes / self.weights if self.weights else 0.0

    @property
    def ratio(self) -> float:
        """How many times smaller it is than the same weights in fp32."""
        return 4 * self.weights / self.bytes if self.bytes else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "parts": dict(self.parts),
            "bytes": self.bytes,
            "weights": self.weights,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "fp32_ratio": round(self.ratio, 4),
        }

    def __str__(self) -> str:
        width = max(map(len, self.parts), default=0)
        lines = [f"{name:<{width}}  {_in_mib(count):>12}" for name, count in self.parts.items()]
        about = f"{self.bits_per_weight:.2f} bits per weight, {self.ratio:.1f} times smaller than in fp32"
        return "\n".join([*lines, f"{'in all':<{width}}  {_in_mib(self.bytes):>12}  {about}"])


def packed_size(model: Any, files: Iterable[Path], names: Mapping[str, str] | None = None) -> PackedSize:
    """Measure the files of a packed model. ``names`` gives the model's own name for a name in the files."""
    places = part_of_parameters(model)
    part_of: dict[str, str] = {}
    weights, seen = 0, set()
    for path, module in model.named_modules():
        packed = isinstance(module, PackedWeight)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            own = packed and name != "bias"
            part_of[f"{path}.{name}".lstrip(".")] = places[id(module.weight if own else parameter)]
            if not own and parameter.dim() < 2:
                part_of[f"{path}.{name}".lstrip(".")] = VECTORS
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if not packed or name == "bias":
                weights += parameter.numel()
            elif name == "weight":
                weights += sum(stored.weights for stored in module.stored_bits())
    buffers = {name for name, _ in model.named_buffers()}
    parts: dict[str, int] = {}
    for file in files:
        tensors = header_of(file).entries
        total = 0
        for name, entry in tensors.items():
            start, end = entry["data_offsets"]
            part = part_of.get((names or {}).get(name, name), BUFFERS if name in buffers else OTHER)
            parts[part] = parts.get(part, 0) + end - start
            total += end - start
        parts[HEADERS] = parts.get(HEADERS, 0) + file.stat().st_size - total
    order = [*dict.fromkeys(places.values()), VECTORS, BUFFERS, OTHER, HEADERS]
    return PackedSize({name: parts[name] for name in dict.fromkeys(order) if name in parts}, weights)


def _in_mib(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB" if count >= 2**20 / 10 else f"{count / 2**10:,.2f} KiB"
