"""Mixes a share of earlier data into a stage after a gate asks for it: ``Forgetting(action="replay")`` draws from
this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_stages.core.references import source_names_in
from hf_stages.data.curricula.base import Curriculum, Make
from hf_stages.data.drawing.nodes import Mixed, Node, subtree
from hf_stages.data.drawing.quotas import FRACTION, Clock, Quotas

Events = tuple[tuple[int, float], ...]
"""(position, share): from this position of the stage on, earlier data have this share."""
_BEYOND = 4096
"""Blocks after the planned end. A stage whose length is in tokens may go on there, and an event may fall there, too."""


@dataclass(frozen=True)
class Replayed(Curriculum):
    """Draws from ``own`` alone, until an event gives ``earlier`` a share. An epoch is one pass over ``own``."""

    own: Any
    earlier: Any
    name: str = "own"
    """The name of the source of rows of ``own``, where they have none."""

    _SOURCES = ("own", "earlier")

    def node(self, make: Make, name: str | None, where: str) -> Node:
        own = make(self.own, None if source_names_in(self.own) else self.name, where)
        earlier = make(self.earlier, None if source_names_in(self.earlier) else "replay", f"{where}: what is replayed")
        return ReplayedNode(own, earlier, where)


class ReplayedNode(Mixed):
    """Has two children whose shares change at events. Curves inside the own child still follow the stage's progress.

    An event takes effect at the next block of the clock (a block is one draw in stages of up to 8192). Quotas are
    summed block by block, so positions before the event keep their rows.
    """

    def __init__(self, own: Node, earlier: Node, where: str) -> None:
        by_tokens = any(node.by_tokens for child in (own, earlier) for node in subtree(child))
        children = {"own": own, "earlier": earlier}
        super().__init__(children, {"own": 1.0, "earlier": 0.0}, temperature=1.0, by_tokens=by_tokens, where=where)
        self.n = None if self.n is None else own.n
        self.events: Events = ()
        self.draws = 0

    def bind(self, clock: Clock, seed: int, shuffle: bool) -> None:
        clock, self.draws = _with_blocks_after_end(clock)
        self.clock = clock
        starts = clock.edges[:-1] >> FRACTION
        share = np.zeros(len(starts))
        for position, value in self.events:
            share[starts >= position] = value
        self.quotas = Quotas(clock, np.stack([1.0 - share, share], axis=1))
        for child, own in zip(self._children, self.quotas.clocks, strict=True):
            child.bind(own, seed, shuffle)

    def shares(self, t: float) -> list[float]:
        """Return the shares at progress t.

        When rows are drawn one by one, an event takes effect at its own position.
        """
        share = 0.0
        for position, value in self.events:
            share = value if int(t * self.draws) >= position else share
        return [1.0 - share, share]


def _with_blocks_after_end(clock: Clock) -> tuple[Clock, int]:
    """Return the clock with small blocks after its planned end as well, and its planned draws."""
    inside = int((clock.t < 1.0).sum())
    start, end = int(clock.edges[inside]) >> FRACTION, int(clock.edges[-1]) >> FRACTION
    blocks = max(_BEYOND, len(clock.t) - inside)
    more = np.array([start + (end - start) * b // blocks for b in range(1, blocks + 1)], dtype=np.int64)
    edges = np.concatenate([clock.edges[: inside + 1], more << FRACTION])
    return Clock(edges, np.concatenate([clock.t[:inside], np.ones(blocks)])), start
