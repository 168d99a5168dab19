"""A curriculum as a tree of nodes that finds the source and the row of each draw. The sources are its leaves.

``at`` finds any draws at once, from the recipe, the seed and the numbers of the draws alone. Where a mixture counts
tokens, ``draw`` goes one by one instead and stores its few numbers in a ``Walk``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_stages.core.curves import Curve, as_curve
from hf_stages.core.randomness import seed_of
from hf_stages.data.drawing.permutation import permute
from hf_stages.data.drawing.quotas import FRACTION, Clock, Quotas

_AHEAD = 1024


@dataclass
class Walk:
    """The state of drawing one by one: a few numbers for each node."""

    read: Callable[[Leaf, int], int]
    """Returns the tokens of a leaf's row."""
    counts: dict[str, int] = field(default_factory=dict)
    credits: dict[str, list[float]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "credits": {key: list(value) for key, value in self.credits.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts = dict(state["counts"])
        self.credits = {key: list(value) for key, value in state["credits"].items()}

    def count(self, key: str) -> int:
        """Return how often a node was asked before, and count this time."""
        before = self.counts.get(key, 0)
        self.counts[key] = before + 1
        return before


class Node:
    """Base class of nodes. ``n`` is the draws of one pass; None where a stream has no length."""

    key = ""
    """Its place in the tree."""
    n: int | None
    by_tokens = False
    limit: float | None = None
    """The draws that a mixture takes from it before its share goes to the others; None: no limit."""
    most_draws: float | None = None
    """The draws after which it is used up, which is an error."""
    may_stop = False
    """Whether it is an error if the stream ends, instead of a reason to read it again."""

    def children(self) -> Sequence[Node]:
        return ()

    def bind(self, clock: Clock, seed: int, shuffle: bool) -> None:
        raise NotImplementedError

    def at(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the leaves, and their rows."""
        raise NotImplementedError

    def before(self, draws: int) -> list[int]:
        """Return how many of its first ``draws`` went to each child."""
        raise NotImplementedError

    def draw(self, walk: Walk, t: float) -> tuple[Leaf, int, int]:
        """Return the next leaf, its row and the row's tokens."""
        raise NotImplementedError

    def mean_shares(self, t: float) -> dict[int, float]:
        """Return the declared share of every leaf in this node's draws."""
        raise NotImplementedError


def subtree(node: Node) -> Iterator[Node]:
    """Yield the node and all nodes below it."""
    yield node
    for child in node.children():
        yield from subtree(child)


class Leaf(Node):
    """One source: pass after pass over all of its rows, each pass in its own order."""

    def __init__(
        self, name: str, dataset: Any, n: int | None, *, order: Callable[[], np.ndarray] | None = None
    ) -> None:
        self.name, self.dataset, self.n = name, dataset, n
        self.dataset_for_model = dataset
        """The dataset with the columns that a model takes."""
        self.number = 0
        self.order = order
        """Computes or opens the sorted row numbers; None where rows are shuffled or stay in their order."""
        self._sorted: np.ndarray | None = None
        self.window = 1
        self.sort_every_pass = True
        """Whether passes after the first are sorted, too; else they are shuffled."""
        self.keep_order = False
        """Whether rows stay in their order even where the run shuffles."""
        self._ahead: tuple[int, np.ndarray] | None = None

    @property
    def takes_several(self) -> bool:
        """Return whether a draw gives several rows, as ``ByLength(tokens=...)`` does."""
        return isinstance(getattr(self.dataset, "tokens", None), np.ndarray)

    def sorted_rows(self) -> np.ndarray | None:
        """Return the sorted row numbers.

        They are made at the stage's begin or the first draw, so that a plan scores nothing.
        """
        if self._sorted is None and self.order is not None:
            self._sorted = self.order()
        return self._sorted

    def bind(self, clock: Clock, seed: int, shuffle: bool) -> None:
        self.clock, self.seed, self._ahead = clock, seed_of(seed, self.name), None
        self.shuffle = shuffle and not self.keep_order

    def at(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(draws), self.number), self.rows(draws)

    def rows(self, draws: np.ndarray) -> np.ndarray:
        if self.n is None:
            return draws
        passes, places = np.divmod(draws, self.n)
        if self.order is None:
            return permute(places, self.n, self._keys(passes)) if self.shuffle else places
        rows = self._by_order(passes, places)
        if not self.sort_every_pass and (later := passes > 0).any():
            rows[later] = permute(places[later], self.n, self._keys(passes[later]))
        return rows

    def _by_order(self, passes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the sorted rows, shuffled within windows of neighbours. The last window may be smaller."""
        order = self.sorted_rows()
        assert self.n is not None
        assert order is not None
        window = min(self.window, self.n)
        if window > 1:
            block, inside = np.divmod(places, window)
            last = block == (self.n - 1) // window
            keys = self._keys(passes * (self.n // window + 1) + block)
            for chosen, size in ((~last, window), (last, self.n - (self.n - 1) // window * window)):
                inside[chosen] = permute(inside[chosen], size, keys[chosen])
            places = block * window + inside
        return order[places].astype(np.int64)

    def _keys(self, passes: np.ndarray) -> np.ndarray:
        if not len(passes):
            return np.zeros(0, dtype=np.uint64)
        unique, back = np.unique(passes, return_inverse=True)
        return np.array([seed_of(self.seed, int(p)) for p in unique], dtype=np.uint64)[back]

    def draw(self, walk: Walk, t: float) -> tuple[Leaf, int, int]:
        number = walk.count(self.key)
        if self._ahead is None or not 0 <= number - self._ahead[0] < _AHEAD:
            self._ahead = number, self.rows(np.arange(number, number + _AHEAD))
        row = int(self._ahead[1][number - self._ahead[0]])
        return self, row, walk.read(self, row)

    def mean_shares(self, t: float) -> dict[int, float]:
        return {self.number: 1.0}


class Mixed(Node):
    """Draws from its children by weights that are curves."""

    def __init__(
        self,
        children: Mapping[str, Node],
        weights: Mapping[str, Any],
        *,
        temperature: float,
        by_tokens: bool,
        where: str,
    ) -> None:
        self.children_by_name = dict(children)
        self.curves: list[Curve] = [as_curve(weights[name]) for name in self.children_by_name]
        self.temperature, self.by_tokens, self.where = temperature, by_tokens, where
        self._children = list(self.children_by_name.values())
        sizes = [child.n for child in self._children]
        self.n = None if None in sizes else sum(size for size in sizes if size is not None)

    def children(self) -> Sequence[Node]:
        return self._children

    def shares(self, t: float) -> list[float]:
        """Return the children's shares at progress t."""
        weights = [curve(t) for curve in self.curves]
        if any(not 0 <= w < float("inf") for w in weights):
            name, weight = next(
                (n, w) for n, w in zip(self.children_by_name, weights, strict=True) if not 0 <= w < float("inf")
            )
            raise ValueError(
                f"{self.where}: weights: {name!r} weighs {weight:.4g} at t={t:.4g}; expected numbers of at least 0, "
                "so let its curve end at 0"
            )
        if self.temperature != 1.0:
            top = max(weights) or 1.0
            weights = [(w / top) ** (1 / self.temperature) if w else 0.0 for w in weights]
        total = sum(weights)
        if total <= 0:
            raise ValueError(
                f"{self.where}: weights: all are 0 at t={t:.4g}, so no source is to be drawn from; let one stay above 0"
            )
        return [w / total for w in weights]

    def bind(self, clock: Clock, seed: int, shuffle: bool) -> None:
        shares = np.array([self.shares(t) for t in clock.t])
        if any(child.limit is not None for child in self._children):
            slack = ((len(shares[0]) - 1).bit_length() - 1) / 2  # how far a quota may be exceeded
            limits = [None if child.limit is None else max(child.limit - slack, 0.0) for child in self._children]
            shares = _cap_repeats(shares, clock, limits, self)
        self.quotas = Quotas(clock, shares)
        for child, own in zip(self._children, self.quotas.clocks, strict=True):
            child.bind(own, seed, shuffle)

    def at(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(draws) and (int(draws.max()) << FRACTION) >= self.quotas.end:
            raise ValueError(f"{self.where}: the stage takes more than eight times the examples that were planned")
        child, own = self.quotas.at(draws)
        leaves, rows = np.zeros_like(draws), np.zeros_like(draws)
        for number, node in enumerate(self._children):
            where = np.flatnonzero(child == number)
            if len(where):
                leaves[where], rows[where] = node.at(own[where])
        return leaves, rows

    def before(self, draws: int) -> list[int]:
        return self.quotas.before(draws)

    def draw(self, walk: Walk, t: float) -> tuple[Leaf, int, int]:
        """Draw from the child with the largest credit.

        Every child is credited its share of the amount drawn; the child that was drawn from pays the amount.
        """
        shares = self.shares(t)
        owed = walk.credits.setdefault(self.key, [0.0] * len(shares))
        best = max((i for i, share in enumerate(shares) if share), key=lambda i: (owed[i], shares[i]))
        leaf, row, tokens = self._children[best].draw(walk, t)
        amount = tokens if self.by_tokens else 1
        for i, share in enumerate(shares):
            owed[i] += share * amount
        owed[best] -= amount
        return leaf, row, tokens

    def mean_shares(self, t: float) -> dict[int, float]:
        found: dict[int, float] = {}
        for share, child in zip(self.shares(t), self._children, strict=True):
            found.update({number: share * inner for number, inner in child.mean_shares(t).items()})
        return found


class Chained(Node):
    """Draws from its children one after another, and then again. Only the last may be a stream, which has no end."""

    def __init__(self, children: Sequence[Node]) -> None:
        self._children = list(children)
        sizes = [child.n for child in children]
        self.edges = np.cumsum([0, *[size for size in sizes[:-1] if size is not None]])
        self.n = None if sizes[-1] is None else int(self.edges[-1] + sizes[-1])

    def children(self) -> Sequence[Node]:
        return self._children

    def bind(self, clock: Clock, seed: int, shuffle: bool) -> None:
        for number, child in enumerate(self._children):
            edges = np.array([self._before(number, edge) for edge in clock.edges.tolist()], dtype=np.int64)
            child.bind(Clock(edges, clock.t), seed, shuffle)

    def _before(self, number: int, edge: int) -> int:
        """Return the draws (in fixed point) that a child has had when this node has had ``edge``."""
        start = int(self.edges[number]) << FRACTION
        if self.n is None:
            length = None if number == len(self._children) - 1 else int(self._children[number].n or 0) << FRACTION
            return max(edge - start, 0) if length is None else min(max(edge - start, 0), length)
        length, whole = int(self._children[number].n or 0) << FRACTION, self.n << FRACTION
        passes, rest = divmod(edge, whole)
        return passes * length + min(max(rest - start, 0), length)

    def at(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        passes, places = np.divmod(draws, self.n) if self.n is not None else (np.zeros_like(draws), draws)
        child = np.searchsorted(self.edges, places, side="right") - 1
        leaves, rows = np.zeros_like(draws), np.zeros_like(draws)
        for number, node in enumerate(self._children):
            where = np.flatnonzero(child == number)
            if len(where):
                own = passes[where] * (node.n or 0) + places[where] - self.edges[number]
                leaves[where], rows[where] = node.at(own)
        return leaves, rows

    def before(self, draws: int) -> list[int]:
        return [self._before(number, draws << FRACTION) >> FRACTION for number in range(len(self._children))]

    def draw(self, walk: Walk, t: float) -> tuple[Leaf, int, int]:
        draws = walk.count(self.key)
        place = draws if self.n is None else draws % self.n
        return self._children[int(np.searchsorted(self.edges, place, side="right")) - 1].draw(walk, t)

    def mean_shares(self, t: float) -> dict[int, float]:
        """Return the shares by length; only the clock knows which child t falls into."""
        found: dict[int, float] = {}
        for child in self._children:
            share = (child.n or 0) / self.n if self.n else 1.0 / len(self._children)
            found.update({number: share * inner for number, inner in child.mean_shares(t).items()})
        return found


def _cap_repeats(shares: np.ndarray, clock: Clock, caps: Sequence[float | None], node: Mixed) -> np.ndarray:
    """Return shares in which a source gives its share to the others once it has been read as often as allowed."""
    left = np.array([np.inf if cap is None else cap for cap in caps])
    result = shares.copy()
    for block, span in enumerate(clock.spans):
        given = _distribute(span, shares[block], left) if span else None
        if given is not None:
            result[block] = given / span
            left = np.maximum(left - given, 0.0)
        elif span and clock.t[block] < 1.0:
            raise ValueError(
                f"{node.where}: max_repeats: at t={clock.t[block]:.3g} every source that weighs something has been "
                "read as often as it may; raise max_repeats, add a source, or shorten the stage"
            )
    return result


def _distribute(span: float, shares: np.ndarray, left: np.ndarray) -> np.ndarray | None:
    """Distribute a block's draws over children by their shares; ``left`` is how many more each may give.

    Return None where the children together cannot give as many.
    """
    given, open_, rest = np.zeros(len(shares)), shares > 0, float(span)
    while rest > 1e-9 * span:
        total = shares[open_].sum()
        if not total > 0:
            return None
        wanted = np.where(open_, shares * (rest / total), 0.0)
        full = open_ & (wanted >= left)
        if not full.any():
            return given + wanted
        given[full] = left[full]
        rest -= float(left[full].sum())
        open_ &= ~full
    return given
