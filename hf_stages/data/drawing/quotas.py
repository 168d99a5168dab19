"""Turns shares that change over a stage into whole draws: which child has position k, and how
many draws that child had before it.

A clock counts draws. Progress runs over it in blocks, and within a block the shares do not change. A split gives every
draw of its clock to its left or its right half. After m draws the left half has had ``floor(V(m) + 1/2)`` draws, where
V is the sum of its shares so far. V is a fixed-point number that rises by at most one per draw. So the counts are whole
numbers, never fall and add up, and each half has its own clock for the next split. In a balanced tree a source is at
most half a draw per level away from its declared share, at any k. (Quota methods of apportionment have the same bound
of one seat.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRACTION = 20
"""Bits of a draw after the binary point."""
_SHARE = 22
"""Bits of a share. A block's draws, their fraction and a share are multiplied in 63 bits."""
BLOCKS = 8192
_SPAN = 1 << 20
_BEYOND = 8
"""How many times its planned length a stage may run where its length is in tokens. Beyond it shares are those at t =
1."""
_AHEAD = 1 << 16  # a loader reads ahead of a short stage's end


@dataclass(frozen=True)
class Clock:
    """The expected draws at the edges of the blocks, in fixed point; ``t`` is the progress in the middle of each
    block."""

    edges: np.ndarray
    t: np.ndarray

    @classmethod
    def for_draws(cls, draws: int) -> Clock:
        """Make the clock of a whole stage of this many draws."""
        draws = max(int(draws), 1)
        blocks = min(max(BLOCKS, -(-draws // _SPAN)), draws)
        inside = np.array([draws * b // blocks for b in range(blocks + 1)], dtype=np.int64)
        more = max((_BEYOND - 1) * draws, _AHEAD)
        further = -(-more // _SPAN)
        after = np.array([draws + more * b // further for b in range(1, further + 1)], dtype=np.int64)
        t = np.concatenate([(inside[:-1] + inside[1:]) / (2 * draws), np.ones(further)])
        return cls(np.concatenate([inside, after]) << FRACTION, t)

    @property
    def spans(self) -> np.ndarray:
        """Return the draws of each block."""
        return np.diff(self.edges) / (1 << FRACTION)


@dataclass(frozen=True)
class _Split:
    edges: np.ndarray
    """The edges of the clock that is split."""
    left_edges: np.ndarray
    share: np.ndarray
    """The left half's share in each block, in units of 2**-22."""

    @classmethod
    def from_shares(cls, edges: np.ndarray, wanted: np.ndarray) -> _Split:
        """Split by ``wanted``, the left half's share in each block. The next block corrects what rounding left over."""
        left, exact = 0, 0.0
        lefts, shares = [0], []
        for span, share in zip(np.diff(edges).tolist(), wanted.tolist(), strict=True):
            exact += span * share
            if 0.0 < share < 1.0 and span:
                share = min(max((exact - left) / span, 0.0), 1.0)
            whole = round(share * (1 << _SHARE))
            left += (whole * span) >> _SHARE
            lefts.append(left)
            shares.append(whole)
        return cls(edges, np.array(lefts, dtype=np.int64), np.array(shares, dtype=np.int64))

    def before(self, draws: np.ndarray) -> np.ndarray:
        """Return how many of the first ``draws`` went to the left half."""
        at = draws << FRACTION
        block = np.clip(np.searchsorted(self.edges, at, side="right") - 1, 0, len(self.share) - 1)
        left = self.left_edges[block] + ((self.share[block] * (at - self.edges[block])) >> _SHARE)
        return (left + (1 << (FRACTION - 1))) >> FRACTION


class Quotas:
    """Divides the draws of a clock among children. ``shares[b, i]`` is child i's share in block b."""

    def __init__(self, clock: Clock, shares: np.ndarray) -> None:
        self.children = shares.shape[1]
        self.end = int(clock.edges[-1])
        edges: list[np.ndarray] = [clock.edges] * self.children
        self._tree = _build_tree(clock.edges, shares, 0, self.children, edges)
        self.clocks = [Clock(own, clock.t) for own in edges]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the child of each position, and how many draws that child had before it."""
        child, own = np.zeros_like(positions), np.zeros_like(positions)
        self._walk(self._tree, np.arange(len(positions)), positions, child, own)
        return child, own

    def before(self, position: int) -> list[int]:
        """Return every child's draws among the first ``position``."""
        counts = [0] * self.children

        def walk(node: tuple, draws: int) -> None:
            split, first, _, left, right = node
            if split is None:
                counts[first] = draws
                return
            own = int(split.before(np.array([draws]))[0])
            walk(left, own)
            walk(right, draws - own)

        walk(self._tree, position)
        return counts

    def _walk(self, node: tuple, where: np.ndarray, draws: np.ndarray, child: np.ndarray, own: np.ndarray) -> None:
        split, first, _, left, right = node
        if split is None:
            child[where], own[where] = first, draws
            return
        before = split.before(draws)
        goes_left = split.before(draws + 1) > before
        self._walk(left, where[goes_left], before[goes_left], child, own)
        self._walk(right, where[~goes_left], (draws - before)[~goes_left], child, own)


def _build_tree(edges: np.ndarray, shares: np.ndarray, first: int, last: int, clocks: list[np.ndarray]) -> tuple:
    """Return (split, first child, last child, left, right); a leaf has no split."""
    if last - first == 1:
        clocks[first] = edges
        return (None, first, last, None, None)
    middle = (first + last) // 2
    left, whole = shares[:, first:middle].sum(1), shares[:, first:last].sum(1)
    conditional = np.divide(left, whole, out=np.zeros_like(left), where=whole > 0)
    conditional[(left > 0) & (shares[:, middle:last].sum(1) == 0)] = 1.0  # sums of floats may miss it
    split = _Split.from_shares(edges, conditional)
    right = edges - split.left_edges
    return (
        split,
        first,
        last,
        _build_tree(split.left_edges, shares, first, middle, clocks),
        _build_tree(right, shares, middle, last, clocks),
    )
