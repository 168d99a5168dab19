"""Joins a curriculum with its datasets: the plan measures the result, and a stage draws from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from hf_stages.core.fingerprint import fingerprint
from hf_stages.data.curricula.base import Curriculum
from hf_stages.data.curricula.mixture import Mixture
from hf_stages.data.drawing.nodes import Leaf, Node, Walk, subtree
from hf_stages.data.drawing.quotas import FRACTION, Clock
from hf_stages.data.drawing.replayed import Events, ReplayedNode
from hf_stages.data.drawing.scores import count_tokens, row_lengths

_PROBED = 64
_FEW = 8


class Blend:
    """Holds the sources of a curriculum and the tree of nodes that draws from them.

    ``bind`` sets the stage's length.
    """

    def __init__(self, part: Curriculum, look_up: Callable[[str, str], Any], where: str) -> None:
        self.part, self.where = part, where
        self._look_up, self._opening = look_up, [where]
        self._cache: Path | None = None
        self._order = (0, True)
        self.leaves: list[Leaf] = []
        self.root = self._node(part, None, where)
        self._number(self.root, "")
        self.names = tuple(leaf.name for leaf in self.leaves)
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(
                    f"{where}: the source {name!r} is drawn from in two places; name each source once, or call one of "
                    "them otherwise: "
                    f'Mixture(..., sources={{"{name}-again": ...}})'
                )
        self._check()
        self.draws = 0
        """The draws of the whole stage, once ``bind`` has set them."""

    def _check(self) -> None:
        """Refuse curricula that are valid one by one but do not work together."""
        if self.one_by_one and any(node.limit is not None for node in subtree(self.root)):
            raise ValueError(
                f"{self.where}: max_repeats: a mixture here goes by tokens, and then nobody knows beforehand which "
                "source will be read too often; say on_dry='stop', or weigh='examples' in all of them"
            )
        if self.streams and (several := [leaf.name for leaf in self.leaves if leaf.takes_several]):
            raise ValueError(
                f"{self.where}: ByLength: tokens: {several[0]!r} gives several rows at once, which a loader of streams "
                "cannot; leave tokens out, or save the stream first"
            )

    def with_datasets(self, change: Callable[[Any], Any]) -> Blend:
        """Return the same blend over changed datasets.

        Every dataset is changed once, also where several nodes share it.
        """
        changed: dict[int, Any] = {}

        def once(dataset: Any) -> Any:
            return changed.setdefault(id(dataset), (dataset, change(dataset)))[1]

        def look_up(name: str, where: str) -> Any:
            found = self._look_up(name, where)
            return found.map_datasets(once) if isinstance(found, Curriculum) else once(found)

        return make_blend(self.part.map_datasets(once), look_up, self.where)

    @property
    def n(self) -> int | None:
        """Return the draws of an epoch; None where a source is a stream."""
        return self.root.n

    @property
    def streams(self) -> bool:
        return any(leaf.n is None for leaf in self.leaves)

    @property
    def replays(self) -> bool:
        """Return whether a gate may mix in earlier data while the stage runs."""
        return isinstance(self.root, ReplayedNode)

    @property
    def replay_only(self) -> tuple[str, ...]:
        """Return the sources that are drawn from only after a gate asks for it."""
        nodes = subtree(self.root.children()[1]) if self.replays else ()
        return tuple(node.name for node in nodes if isinstance(node, Leaf))

    @property
    def one_by_one(self) -> bool:
        """Return whether a mixture counts tokens.

        Then rows must be drawn one after another: each depends on those before.
        """
        return any(node.by_tokens for node in subtree(self.root))

    @property
    def _fingerprint(self) -> str:
        return hashlib.sha256(repr(self.described()).encode()).hexdigest()[:16]

    def described(self) -> dict[str, Any]:
        """Return fingerprints of everything that decides what is drawn."""
        bare = self.part.map_datasets(lambda dataset: None if dataset is None else fingerprint(dataset))
        return {"of": fingerprint(bare), **{leaf.name: fingerprint(leaf.dataset) for leaf in self.leaves}}

    # ---- making -----------------------------------------------------------------------------------------------------

    def __call__(self, source: Any, name: str | None, where: str) -> Node:
        """Make the node of a source; see ``Make``."""
        return self._node(source, name, where)

    def folder(self) -> Path | None:
        return self._cache

    def _node(self, source: Any, name: str | None, where: str) -> Node:
        if isinstance(source, str):
            found = self._look_up(source, where)
            if isinstance(found, Curriculum):
                if f"{source}" in self._opening:
                    raise ValueError(f"{where}: the source {source!r} is made of itself")
                self._opening.append(source)
                node = found.node(self, name or source, where)
                self._opening.pop()
                return node
            return self._leaf(name or source, found, where)
        if isinstance(source, Curriculum):
            return source.node(self, name, where)
        if type(source) is dict:
            return Mixture(tuple(source), source).node(self, name, where)
        return self._leaf(name or "data", source, where)

    def _leaf(self, name: str, dataset: Any, where: str) -> Leaf:
        n = len(dataset) if isinstance(dataset, Sized) else None
        if n is None and not hasattr(dataset, "__iter__"):
            raise ValueError(f"{where}: expected a dataset, got {type(dataset).__name__}")
        if n is not None and not hasattr(dataset, "__getitem__"):
            raise ValueError(f"{where}: {name!r} has a length but no rows by number ({type(dataset).__name__})")
        if n == 0:
            raise ValueError(f"{where}: {name!r} is an empty dataset; expected at least one example")
        return Leaf(name, dataset, n)

    def _number(self, node: Node, key: str) -> None:
        node.key = key
        if isinstance(node, Leaf):
            node.number = len(self.leaves)
            self.leaves.append(node)
        for number, child in enumerate(node.children()):
            self._number(child, f"{key}.{number}" if key else str(number))

    # ---- measuring --------------------------------------------------------------------------------------------------

    def tokens_per_example(self) -> float | None:
        """Return the mean tokens of a draw, by the declared weights; None where a source's tokens are not known."""
        each = [mean_tokens(leaf) for leaf in self.leaves]
        if None in each:
            return None
        total = draws = 0.0
        for k in range(100):
            shares = self.root.mean_shares((k + 0.5) / 100)
            if self.one_by_one:  # shares of tokens: of examples they are as much larger as these are shorter
                shares = {i: share / (each[i] or 1.0) for i, share in shares.items()}
            total += sum(share * (each[i] or 0.0) for i, share in shares.items())
            draws += sum(shares.values())
        return total / draws

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def bind(self, draws: int, seed: int, *, shuffle: bool = True, folder: Path | None = None) -> Blend:
        """Prepare for a stage of this many draws, and refuse weights that cannot be drawn by."""
        self.draws, self._cache, self._order = draws, folder, (seed, shuffle)
        self.root.bind(Clock.for_draws(draws), seed, shuffle)
        return self

    def replay(self, events: Events) -> None:
        """Draw by these events from now on. Positions before the last event keep their rows."""
        assert isinstance(self.root, ReplayedNode)
        self.root.events = events
        self.root.bind(Clock.for_draws(self.draws), *self._order)

    def check_dry(self) -> None:
        """Refuse, before the first step, a source that would be read more often than it is allowed."""
        if self.one_by_one:
            return  # found while training
        for leaf, count in zip(self.leaves, self.draws_before(self.draws), strict=True):
            if leaf.most_draws is not None and count > leaf.most_draws and leaf.n:
                raise ValueError(
                    f"{self.where}: {leaf.name!r} runs dry: the stage draws {count:,} of it, and "
                    f"{leaf.most_draws:,.0f} are allowed ({leaf.n:,} examples). Give it less weight, shorten the "
                    f"stage, or allow more: on_dry='repeat', or max_repeats={count / leaf.n:.2g}"
                )

    def at(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the leaves and of their rows at positions of the stage."""
        return self.root.at(np.asarray(positions, dtype=np.int64))

    def draws_before(self, position: int) -> list[int]:
        """Return how many draws each leaf has had before a position."""
        return _draws_before(self.root, position, [0] * len(self.leaves))

    def declared_shares(self, first: int, last: int) -> list[float]:
        """Return the declared shares of the leaves from ``first`` to ``last``: shares of tokens where a mixture counts
        tokens."""
        if self.one_by_one:
            middle = [self.root.mean_shares((k + 0.5) / self.draws) for k in _spread_positions(first, last)]
            return [sum(shares.get(i, 0.0) for shares in middle) / len(middle) for i in range(len(self.leaves))]
        clock = self.root.clock if isinstance(self.root, ReplayedNode) else Clock.for_draws(self.draws)
        edges = clock.edges / (1 << FRACTION)
        had = [np.interp([first, last], edges, leaf.clock.edges / (1 << FRACTION)) for leaf in self.leaves]
        return [float(end - start) / max(last - first, 1) for start, end in had]

    def walk(self, read: Callable[[Leaf, int], int] | None = None) -> Walk:
        """Return the state that ``draw_range`` needs to draw one by one; ``read`` gives the tokens of a leaf's row."""
        if read is None:
            held = {leaf.number: row_lengths(leaf.dataset, self.where) for leaf in self.leaves}

            def read(leaf: Leaf, row: int) -> int:
                return int(held[leaf.number][row])

        return Walk(read)

    def draw_range(self, walk: Walk, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield (leaf, row) at positions from ``first`` on. The walk must stand at ``first``."""
        for position in range(first, last):
            leaf, row, _ = self.root.draw(walk, (position + 0.5) / self.draws)
            if leaf.most_draws is not None and walk.counts[leaf.key] > leaf.most_draws:
                raise ValueError(
                    f"{self.where}: {leaf.name!r} ran dry at example {position:,} of the stage; on_dry='repeat' would "
                    "go on"
                )
            yield leaf.number, row

    def sample_rows(self, count: int) -> list[Any]:
        """Return a few rows, taken from all sources in turn."""
        each = -(-count // len(self.leaves))
        rows: list[Any] = []
        for leaf in self.leaves:
            if leaf.n is None:
                rows += list(leaf.dataset.take(each)) if hasattr(leaf.dataset, "take") else []
            else:
                found = [leaf.dataset[i * leaf.n // each] for i in range(min(each, leaf.n))]
                rows += [one for row in found for one in (row if isinstance(row, list) else [row])]
        return rows[:count]

    def take(self, count: int) -> list[Any]:
        return self.sample_rows(count)


class SizedBlend(Blend):
    """A blend without streams: it has a length and rows by number, source after source, for code that looks at a few
    rows."""

    def __len__(self) -> int:
        return sum(leaf.n or 0 for leaf in self.leaves)

    def __getitem__(self, index: int) -> Any:
        return self.named_row(index)[1]

    def named_row(self, index: int) -> tuple[str, Any]:
        """Return the name of a row's source, and the row."""
        for leaf in self.leaves:
            assert leaf.n is not None
            if index < leaf.n:
                row = leaf.dataset[index]
                return leaf.name, row[0] if isinstance(row, list) else row
            index -= leaf.n
        raise IndexError(index)


def make_blend(part: Curriculum, look_up: Callable[[str, str], Any], where: str) -> Blend:
    made = Blend(part, look_up, where)
    return made if made.streams else SizedBlend(part, look_up, where)


def _draws_before(node: Node, draws: int, counts: list[int]) -> list[int]:
    if isinstance(node, Leaf):
        counts[node.number] = draws
    else:
        for child, own in zip(node.children(), node.before(draws), strict=True):
            _draws_before(child, own, counts)
    return counts


def _spread_positions(first: int, last: int) -> list[int]:
    return sorted({first + (last - first) * k // 64 for k in range(64)})


def mean_tokens(leaf: Leaf) -> float | None:
    if leaf.n is None:
        few = list(leaf.dataset.take(_FEW)) if hasattr(leaf.dataset, "take") else []
    else:
        count = min(_PROBED, leaf.n)
        few = [leaf.dataset[i * leaf.n // count] for i in range(count)]
    found = [count_tokens(row) for row in few if isinstance(row, Mapping | list)]
    return sum(found) / len(found) if any(found) else None
