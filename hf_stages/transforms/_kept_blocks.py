"""Which blocks of a stack are kept, and the names that their parts get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KeptBlocks:
    """A stack, its depth, and the blocks that stay, counted from 0, in their new order.

    >>> kept = KeptBlocks("h", 4, (1, 3))
    >>> [kept.new_name(name) for name in ("wte.weight", "h.0.w", "h.3.w")]
    ['wte.weight', None, 'h.1.w']
    """

    path: str
    depth: int
    kept: tuple[int, ...]

    def new_name(self, name: str) -> str | None:
        """Return a module's or parameter's name after the reduction; None where its block is dropped."""
        head, dot, rest = name.removeprefix(f"{self.path}.").partition(".")
        if not name.startswith(f"{self.path}.") or not head.isdecimal():
            return name
        return f"{self.path}.{self.kept.index(int(head))}{dot}{rest}" if int(head) in self.kept else None

    def name_in_block(self, name: str) -> str:
        """Return a name inside a block, without the stack and the number."""
        return name.removeprefix(f"{self.path}.").partition(".")[2]


def as_indices(keep: Sequence[int], depth: int) -> tuple[int, ...]:
    """Turn layer numbers into indices from 0; ValueError where a layer is not there or comes twice.

    >>> as_indices([1, 3, -1], 6)
    (0, 2, 5)
    """
    beyond = [layer for layer in keep if abs(layer) > depth]
    if beyond:
        raise ValueError(f"keep: expected layers 1 to {depth} (or -1 to -{depth} from the end), got {beyond[0]}")
    kept = tuple(layer - 1 if layer > 0 else depth + layer for layer in keep)
    twice = [layer for layer, index in zip(keep, kept, strict=True) if kept.count(index) > 1]
    if twice:
        raise ValueError(f"keep: expected each layer once, got {' and '.join(map(str, twice))} for the same one")
    return kept
