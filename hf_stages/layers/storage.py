"""The nouns of a model's size: what a quantized layer says of itself, a part of a model, and all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_stages.layers.quantizers import Quantizer

_BITS = {"binary": 1, "ternary": 2}
FULL = "full"


@dataclass(frozen=True)
class StoredBits:
    """One weight of a module as it is when packed; a module's ``stored_bits()`` returns one for each such weight."""

    names: tuple[str, ...]
    """The module's parameters that it takes the place of: latent weights and learned scales. They count as nothing else."""
    weights: int
    """Effective weights: those of the function, however many tensors they are made of."""
    bits: int
    """Of one level."""
    scales: int
    """Over all halves."""
    halves: int = 1

    @property
    def label(self) -> str:
        return f"{self.bits}-bit" if self.halves == 1 else f"{self.halves} x {self.bits}-bit"

    @classmethod
    def from_quantizer(
        cls, names: tuple[str, ...], quantizer: Quantizer, shape: tuple[int, ...], halves: int = 1
    ) -> StoredBits:
        """
        >>> StoredBits.from_quantizer(("weight_latent",), Quantizer("binary", "mean", "row"), (3, 8))
        StoredBits(names=('weight_latent',), weights=24, bits=1, scales=3, halves=1)
        """
        weights = 1
        for length in shape:
            weights *= length
        scales = halves * (weights // quantizer.group_size(shape))
        return cls(names, weights, _BITS[quantizer.levels], scales, halves)


@dataclass(frozen=True)
class PartSize:
    """A part of a model."""

    weights: int = 0
    level_bits: int = 0
    """Bits of levels, and of whole numbers that are stored as they are."""
    floats: int = 0
    """Numbers that are stored in floating point: weights that are not quantized, and scales."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """How many tensors are ``1-bit``, ``2-bit``, ``2 x 1-bit`` and ``full``."""

    def __add__(self, other: PartSize) -> PartSize:
        labels = dict.fromkeys([*self.tensors, *other.tensors])
        return PartSize(
            self.weights + other.weights,
            self.level_bits + other.level_bits,
            self.floats + other.floats,
            {label: self.tensors.get(label, 0) + other.tensors.get(label, 0) for label in labels},
        )

    def bytes(self, floats: int = 16) -> int:
        """Packed; ``floats`` is the bits of what is stored in floating point."""
        return -(-(self.level_bits + floats * self.floats) // 8)

    @property
    def bits_per_weight(self) -> float:
        return (self.level_bits + 16 * self.floats) / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class StoredSize:
    """What a model takes when packed, by part. Nothing is left out of a total or a ratio."""

    parts: Mapping[str, PartSize]

    @property
    def total(self) -> PartSize:
        return sum(self.parts.values(), PartSize())

    @property
    def weights(self) -> int:
        """Effective weights; tied ones count once, a split layer's once."""
        return self.total.weights

    @property
    def bits_per_weight(self) -> float:
        """All bits over all weights, with scales and whatever is not quantized in fp16."""
        return self.total.bits_per_weight

    @property
    def bytes(self) -> int:
        """With scales and whatever is not quantized in fp16."""
        return self.total.bytes()

    @property
    def bytes_rest_fp32(self) -> int:
        """With scales and whatever is not quantized in fp32."""
        return self.total.bytes(floats=32)

    @property
    def fp32_bytes(self) -> int:
        """The same model with every weight in fp32."""
        return 4 * self.weights

    @property
    def quantized(self) -> bool:
        return any(label != FULL for part in self.parts.values() for label in part.tensors)

    def ratio(self, weights: int | None = None) -> float:
        """How many times smaller than fp32: than this model, or than one of so many ``weights``."""
        return 4 * (self.weights if weights is None else weights) / self.bytes if self.bytes else 1.0

    def to_dict(self, initial: int | None = None) -> dict[str, Any]:
        """For JSON. ``initial`` is the number of weights that the run began with."""
        parts = {
            name: {
                "weights": part.weights,
                "bits_per_weight": round(part.bits_per_weight, 4),
                "bytes": part.bytes(),
                "tensors": dict(part.tensors),
            }
            for name, part in self.parts.items()
        }
        return {
            "weights": self.weights,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "bytes": self.bytes,
            "bytes_rest_fp32": self.bytes_rest_fp32,
            "fp32_bytes": self.fp32_bytes,
            "fp32_ratio": round(self.ratio(), 4),
            "initial_fp32_ratio": None if initial is None else round(self.ratio(initial), 4),
            "quantized": self.quantized,
            "parts": parts,
        }
