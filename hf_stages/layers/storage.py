"""The size of a model when packed: of one weight, of a part of the model, and of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_stages.layers.quantizers import Quantizer

_BITS = {"binary": 1, "ternary": 2}
FULL = "full"


@dataclass(frozen=True)
class StoredBits:
    """How one weight of a module is packed. A module's ``stored_bits()`` returns one of these for each packed weight.

    >>> stored = StoredBits(("weight_latent",), weights=24, bits=1, scales=3)
    >>> stored.label
    '1-bit'
    """

    names: tuple[str, ...]
    """The parameters that it replaces, latent weights and learned scales. They are not counted otherwise."""
    weights: int
    """The number of effective weights, however many tensors they are computed from."""
    bits: int
    """Bits of one level."""
    scales: int
    """The number of scales, in both halves together."""
    halves: int = 1
    """2 where two binary weights are added up."""

    @property
    def label(self) -> str:
        """How tables name this kind of weight."""
        return f"{self.bits}-bit" if self.halves == 1 else f"{self.halves} x {self.bits}-bit"

    @classmethod
    def from_quantizer(
        cls, names: tuple[str, ...], quantizer: Quantizer, shape: tuple[int, ...], halves: int = 1
    ) -> StoredBits:
        """Count the bits of a weight of this shape.

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
    """The size of one part of a model, such as its embeddings.

    >>> PartSize(weights=2048, level_bits=2048, floats=32).bytes()
    320
    """

    weights: int = 0
    """The number of effective weights."""
    level_bits: int = 0
    """Bits of all levels, and of whole numbers that are stored unchanged."""
    floats: int = 0
    """How many numbers are stored in floating point: weights that are not quantized, and scales."""
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
        """Return the packed size; ``floats`` is the number of bits of a floating-point number."""
        return -(-(self.level_bits + floats * self.floats) // 8)

    @property
    def bits_per_weight(self) -> float:
        return (self.level_bits + 16 * self.floats) / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class StoredSize:
    """The size of a model when packed, by part. Totals and ratios count everything.

    >>> size = StoredSize({"blocks": PartSize(weights=2048, level_bits=2048, floats=32)})
    >>> size.bits_per_weight, size.ratio()
    (1.25, 25.6)
    """

    parts: Mapping[str, PartSize]
    """The size of each part, by its name."""

    @property
    def total(self) -> PartSize:
        """All parts together."""
        return sum(self.parts.values(), PartSize())

    @property
    def weights(self) -> int:
        """The number of effective weights. Tied weights count once, and so do those of a split layer."""
        return self.total.weights

    @property
    def bits_per_weight(self) -> float:
        """All bits over all weights, where scales and weights that are not quantized have 16 bits."""
        return self.total.bits_per_weight

    @property
    def bytes(self) -> int:
        """The size where scales and weights that are not quantized have 16 bits."""
        return self.total.bytes()

    @property
    def bytes_rest_fp32(self) -> int:
        """The size where scales and weights that are not quantized have 32 bits."""
        return self.total.bytes(floats=32)

    @property
    def fp32_bytes(self) -> int:
        """The size of the same model with every weight in 32 bits."""
        return 4 * self.weights

    @property
    def quantized(self) -> bool:
        """Whether any weight is quantized."""
        return any(label != FULL for part in self.parts.values() for label in part.tensors)

    def ratio(self, weights: int | None = None) -> float:
        """Return how many times smaller it is than this model in fp32, or than a model of ``weights`` weights."""
        return 4 * (self.weights if weights is None else weights) / self.bytes if self.bytes else 1.0

    def to_dict(self, initial: int | None = None) -> dict[str, Any]:
        """Return plain data for JSON. ``initial`` is the number of weights of the model that the run began with."""
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
