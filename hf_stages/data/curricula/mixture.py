"""Draws from several sources by weights that may change over the stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_stages.core.curves import Curve, as_curve
from hf_stages.core.placed_errors import place_errors
from hf_stages.data.curricula.base import Curriculum, Make, check_source
from hf_stages.data.drawing.nodes import Leaf, Mixed, Node, subtree


@dataclass(frozen=True, eq=True)
class Mixture(Curriculum):
    """Draws from several sources by weights: ``Mixture({"language": Linear(1, 0.3), "code": Linear(0, 0.7)})``.

    A weight is a number or a curve over the stage's progress. A list of names instead of weights draws from each source
    in proportion to its size.

    >>> Mixture({"language": "Linear(1, 0.3)", "code": 0.7}).weights["language"](0.5)
    0.65
    """

    weights: Mapping[str, float | Curve] | tuple[str, ...]
    """``{source: weight}``, numbers or curves; a list of names draws from each source in proportion to its size."""
    sources: Mapping[str, Any] | None = None
    """What a name in ``weights`` stands for, where it is not a source of the recipe: a dataset, another name or a
    curriculum."""
    weigh: Literal["examples", "tokens"] = "examples"
    """Whether shares count examples or tokens."""
    temperature: float = 1.0
    """Weights are raised to the power 1 / temperature. Above 1, small sources come more often (arXiv 1911.02116 raises
    sizes to the power 0.3)."""
    max_repeats: float | None = None
    """How many times a source may be read. After that its share goes to the others."""
    on_dry: Literal["repeat", "stop"] = "repeat"
    """``stop``: it is an error if a source would be read more than ``max_repeats`` times (once, where that is None)."""

    _SOURCES = ("sources",)

    def __post_init__(self) -> None:
        weights = self.weights
        if isinstance(weights, Mapping):
            weights = {name: as_curve(w) if isinstance(w, str) else w for name, w in weights.items()}
        elif isinstance(weights, list | tuple):
            weights = tuple(weights)
        if not weights or isinstance(weights, str) or not isinstance(weights, dict | tuple):
            raise ValueError(
                f'weights: expected weights by source, such as {{"language": 0.9, "code": 0.1}}, got {self.weights!r}'
            )
        object.__setattr__(self, "weights", weights)
        self._check_weights(weights)
        for key, low in (("temperature", 0.0), ("max_repeats", 0.0)):
            value = getattr(self, key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if (value is not None or key == "temperature") and not (number and value > low):
                raise ValueError(f"{key}: expected a number above 0, got {value!r}")
        for key, known in (("weigh", ("examples", "tokens")), ("on_dry", ("repeat", "stop"))):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}: expected {known[0]!r} or {known[1]!r}, got {getattr(self, key)!r}")
        if self.weigh == "tokens" and self.max_repeats is not None and self.on_dry != "stop":
            raise ValueError(
                "max_repeats: shares of tokens are drawn as they come, and nobody knows beforehand which source will "
                "be read too often; say on_dry='stop', or weigh='examples'"
            )
        self._check_sources()

    def _check_weights(self, weights: Mapping[str, float | Curve] | tuple[str, ...]) -> None:
        if any(not isinstance(name, str) or not name for name in weights):
            raise ValueError(f"weights: expected names of sources, got {list(weights)!r}")
        if len(set(weights)) < len(weights):
            twice = next(name for name in weights if list(weights).count(name) > 1)
            raise ValueError(
                f"weights: {twice!r} is named twice; give each source once, or copies names of their own in sources"
            )
        for name, weight in weights.items() if isinstance(weights, Mapping) else ():
            with place_errors(f"weights: {name!r}"):
                as_curve(weight)

    def _check_sources(self) -> None:
        if self.sources is None:
            return
        if not isinstance(self.sources, Mapping):
            raise ValueError(f"sources: expected a mapping from names to sources, got {self.sources!r}")
        for name, source in self.sources.items():
            if name not in self.weights:
                raise ValueError(f"sources: {name!r} has no weight; there are weights for {', '.join(self.weights)}")
            check_source(source, f"sources: {name!r}")

    def _held_sources(self) -> Iterator[Any]:
        yield from (self._source(name) for name in self.weights)

    def _source(self, name: str) -> Any:
        return (self.sources or {}).get(name, name)

    def node(self, make: Make, name: str | None, where: str) -> Node:
        children = {name: make(self._source(name), name, f"{where}: {name!r}") for name in self.weights}
        weights = self.weights
        if not isinstance(weights, Mapping):
            streams = [name for name, child in children.items() if child.n is None]
            if streams:
                raise ValueError(
                    f"{where}: weights: {streams[0]!r} is a stream, whose size nobody knows; give weights: {{name: "
                    "weight}"
                )
            weights = {name: float(child.n or 0) for name, child in children.items()}
        streams = [name for name, child in children.items() if child.n is None]
        if self.max_repeats is not None and streams:
            raise ValueError(
                f"{where}: max_repeats: {streams[0]!r} is a stream without a length; leave max_repeats out"
            )
        mixed = Mixed(
            children,
            weights,
            temperature=self.temperature,
            by_tokens=self.weigh == "tokens",
            where=f"{where}: {type(self).__name__}",
        )
        for child in children.values():
            if self.on_dry == "stop":
                self._stop(child)
            elif child.n is not None and self.max_repeats is not None:
                child.limit = child.n * self.max_repeats
        return mixed

    def _stop(self, child: Node) -> None:
        """Limit how often the child's sources may be read.

        A limit that a mixture inside has set for its own sources stays.
        """
        for leaf in (node for node in subtree(child) if isinstance(node, Leaf)):
            leaf.may_stop = True
            if leaf.n is not None and leaf.most_draws is None:
                leaf.most_draws = leaf.n * (self.max_repeats or 1)
