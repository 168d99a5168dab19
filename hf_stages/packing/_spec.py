"""How a weight is packed: everything about it that its bytes do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_stages.layers.activations import Activations
from hf_stages.layers.packed_levels import BITS as LEVEL_BITS
from hf_stages.layers.packed_levels import row_bytes

BITS = {**LEVEL_BITS, "int8": 8}

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PackedSpec:
    """How a weight is packed. Modules that are packed in the same way share one.

    >>> PackedSpec("ternary").shapes(rows=4, columns=64)
    ((4, 16), (4, 1))
    """

    levels: str
    """``binary``, ``ternary``, ``split`` (two binary matrices, added up) or ``int8``."""
    group: int | None = None
    """How many neighbours in a row share a scale; None: the whole row."""
    activations: Activations | None = None
    """How the layer's input is rounded; None: it is not."""

    @property
    def bits(self) -> int:
        """Bits of one stored level."""
        return BITS[self.levels]

    def shapes(self, rows: int, columns: int) -> Shapes:
        """Return the shapes of the bytes and of the scales, for a weight of ``rows`` outputs and ``columns`` inputs."""
        halves = (2,) if self.levels == "split" else ()
        groups = 1 if self.group is None else columns // self.group
        return (*halves, rows, row_bytes(columns, self.bits)), (*halves, rows, groups)


def to_layers(specs: Mapping[str, PackedSpec]) -> list[dict[str, Any]]:
    """Return what ``config.json`` says: each kind of packed weight, with the modules that have it."""
    kinds: dict[PackedSpec, list[str]] = {}
    for name, spec in specs.items():
        kinds.setdefault(spec, []).append(name)
    return [
        {
            "levels": spec.levels,
            "group": spec.group,
            "activations": None if spec.activations is None else asdict(spec.activations),
            "modules": names,
        }
        for spec, names in kinds.items()
    ]


def from_layers(layers: Any) -> dict[str, PackedSpec]:
    """Read the specs by module name; ValueError where it is not what ``to_layers`` writes."""
    found: dict[str, PackedSpec] = {}
    if not isinstance(layers, list) or not layers:
        raise ValueError(_wrong_config("", "a list", layers))
    for index, layer in enumerate(layers):
        where = f"[{index}]"
        if not isinstance(layer, Mapping) or set(layer) != {"levels", "group", "activations", "modules"}:
            raise ValueError(_wrong_config(where, "levels, group, activations and modules", layer))
        spec = _spec(where, layer)
        names = layer.get("modules")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(_wrong_config(f"{where}.modules", "a list of module names", names))
        if len(set(names)) < len(names) or not found.keys().isdisjoint(names):
            raise ValueError(_wrong_config(f"{where}.modules", "each module once", names))
        found.update(dict.fromkeys(names, spec))
    return found


def _spec(where: str, layer: Mapping[str, Any]) -> PackedSpec:
    levels, group, activations = layer["levels"], layer["group"], layer["activations"]
    if not isinstance(levels, str) or levels not in BITS:
        raise ValueError(_wrong_config(f"{where}.levels", f"one of {', '.join(BITS)}", levels))
    if group is not None and (type(group) is not int or group < 1):
        raise ValueError(_wrong_config(f"{where}.group", "null or a whole number above 0", group))
    return PackedSpec(levels, group, None if activations is None else _activations(where, activations))


def _activations(where: str, found: Any) -> Activations:
    """Check the type of each field: Python would accept 1 for true and 8.0 for 8."""
    kinds = {"bits": (int,), "symmetric": (bool,), "clip": (float, int, type(None))}
    try:
        if set(found) == set(kinds) and all(type(found[key]) in kind for key, kind in kinds.items()):
            return Activations(**found)
    except (TypeError, ValueError):
        pass
    raise ValueError(_wrong_config(f"{where}.activations", "null or bits (8 or 4), symmetric and clip", found))


def _wrong_config(where: str, expected: str, got: Any) -> str:
    shown = repr(got) if len(repr(got)) < 80 else f"{repr(got)[:77]}..."
    return (
        f"config.json: quantization_config.layers{where}: expected {expected}, got {shown}; "
        "pack the model again, or download it anew"
    )
