"""Mixes a share of earlier data into a stage, so that it is not forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_stages.core.curves import Curve, as_curve
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.references import source_names_in
from hf_stages.data.curricula.base import Curriculum, Make, check_source
from hf_stages.data.drawing.nodes import Mixed, Node


@dataclass(frozen=True)
class Replay(Curriculum):
    """Draws a share of earlier data: ``Replay("language", 0.05, into="code")`` takes one example in twenty from
    ``language``.

    A share of 5 % has kept the old domain at a mild shift of the data, 25 % at a strong one (arXiv 2403.08763, table
    2). An epoch is one pass over ``into``.

    >>> Replay("language", 0.05, into="code").source_names()
    ('code', 'language')
    """

    source: Any
    """What is replayed: a name, a dataset or a curriculum."""
    share: float | Curve
    """The share of examples that are replayed: a number, or a curve over the stage's progress."""
    into: Any = None
    """The data that the stage is about; None is the run's ``train_dataset``."""

    _SOURCES = ("into", "source")

    def __post_init__(self) -> None:
        if isinstance(self.share, str):
            object.__setattr__(self, "share", as_curve(self.share))
        with place_errors("share"):
            curve = as_curve(self.share)
        if any(not 0 <= curve(t / 100) < 1 for t in range(101)):
            raise ValueError(f"share: expected from 0 to below 1 at all times, got {self.share!r}")
        check_source(self.source, "source")
        if self.into is not None:
            check_source(self.into, "into")

    def node(self, make: Make, name: str | None, where: str) -> Node:
        if self.into is None:
            raise ValueError(
                f"{where}: Replay: into: expected what the stage is about; the run has no train_dataset of its own"
            )
        where = f"{where}: Replay"
        names = {
            "into": None if source_names_in(self.into) else name or "new",
            "source": None if source_names_in(self.source) else "replay",
        }
        children = {key: make(getattr(self, key), names[key], f"{where}: {key}") for key in ("into", "source")}
        share = as_curve(self.share)
        node = Mixed(
            children, {"into": _Remainder(share), "source": share}, temperature=1.0, by_tokens=False, where=where
        )
        new = children["into"].n
        new_share = sum(1 - share((t + 0.5) / 100) for t in range(100)) / 100
        node.n = None if new is None or node.n is None else max(round(new / new_share), 1)
        return node


@dataclass(frozen=True)
class _Remainder(Curve):
    """The curve 1 - share."""

    share: Curve

    def value_at(self, t: float) -> float:
        return 1.0 - self.share(t)
