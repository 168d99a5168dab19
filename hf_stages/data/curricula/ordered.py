"""Draws from sources one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_stages.data.curricula.base import Curriculum, Make, check_source
from hf_stages.data.drawing.nodes import Chained, Leaf, Node


@dataclass(frozen=True)
class Ordered(Curriculum):
    """Draws from one source after another, each in its own order, and begins again until the stage ends.

    >>> Ordered(["easy", "hard"]).sources
    ('easy', 'hard')
    """

    sources: Sequence[Any] | str
    """Names, datasets or curricula."""
    shuffle: bool = False
    """Whether each source's rows are shuffled."""

    _SOURCES = ("sources",)

    def __post_init__(self) -> None:
        sources = (self.sources,) if isinstance(self.sources, str) else self.sources
        if not isinstance(sources, list | tuple) or not sources:
            raise ValueError(f'sources: expected a list of sources, such as ["easy", "hard"], got {self.sources!r}')
        for number, source in enumerate(sources):
            check_source(source, f"sources: number {number + 1}")
        object.__setattr__(self, "sources", tuple(sources))

    def node(self, make: Make, name: str | None, where: str) -> Node:
        alone = len(self.sources) == 1
        children = []
        for number, source in enumerate(self.sources, start=1):
            own = name if alone else None if isinstance(source, str) else f"{name or 'part'}-{number}"
            child = make(source, own, f"{where}: Ordered: number {number}")
            if child.n is None and number < len(self.sources):
                raise ValueError(
                    f"{where}: Ordered: number {number} is a stream without a length, so nobody knows when the next "
                    "begins; put it last"
                )
            if isinstance(child, Leaf):
                child.keep_order = not self.shuffle
            children.append(child)
        return children[0] if alone else Chained(children)
