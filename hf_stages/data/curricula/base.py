"""The base class of curricula: they hold sources, by name or as datasets, and make a tree of nodes that draws from
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hf_stages.core.fingerprint import is_model
from hf_stages.core.part import resolve_part
from hf_stages.core.references import source_names_in
from hf_stages.data.drawing.nodes import Leaf, Node

_Own = TypeVar("_Own", bound="Curriculum")


class Make(Protocol):
    """Makes the node of a source, which is a name, a dataset or a curriculum.

    ``where`` is its place, for error messages.
    """

    def __call__(self, source: Any, name: str | None, where: str) -> Node: ...

    def folder(self) -> Path | None: ...


class Curriculum:
    """Base class of curricula: a frozen dataclass. The fields named in ``_SOURCES`` hold sources.

    A curriculum of your own defines ``node``, which says how its sources are drawn from.
    """

    _SOURCES: tuple[str, ...] = ("source",)

    def node(self, make: Make, name: str | None, where: str) -> Node:
        raise NotImplementedError(f"{type(self).__name__} must define node(make, name, where)")

    def source_names(self) -> tuple[str, ...]:
        """Return the names of the sources that it draws from, deeper ones too."""
        return tuple(dict.fromkeys(name for value in self._held_sources() for name in source_names_in(value)))

    def map_datasets(self: _Own, change: Callable[[Any], Any]) -> _Own:
        """Return a copy in which every dataset that it holds is changed. Names of sources stay names."""

        def one(value: Any) -> Any:
            if value is None or isinstance(value, str):
                return value
            if type(value) is dict:
                return {key: one(item) for key, item in value.items()}
            return value.map_datasets(change) if isinstance(value, Curriculum) else change(value)

        def several(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: one(item) for key, item in value.items()}
            return tuple(one(item) for item in value) if isinstance(value, tuple) else one(value)

        own = {key: getattr(self, key) for key in self._SOURCES}
        return replace(self, **{key: several(value) for key, value in own.items()})  # type: ignore[type-var]

    def resolve(self: _Own, base: str | Path) -> _Own:
        """Return a copy in which relative paths of its sources start at ``base``."""
        return self.map_datasets(lambda value: resolve_part(value, base))

    def _held_sources(self) -> Iterator[Any]:
        for key in self._SOURCES:
            value = getattr(self, key)
            if isinstance(value, Mapping):
                yield from value.values()
            elif isinstance(value, tuple):
                yield from value
            elif value is not None:
                yield value


def check_source(value: Any, where: str) -> None:
    """Refuse a value that nothing can be drawn from. A name, a curriculum, a Source or a dataset is accepted."""
    plain = value is None or isinstance(value, bool | int | float | bytes)
    if plain or isinstance(value, type) or is_model(value) or (callable(value) and not hasattr(value, "__iter__")):
        raise ValueError(f"{where}: expected the name of a source, a dataset or a curriculum, got {value!r}")


def single_source(node: Node, what: str, where: str) -> Leaf:
    """Return the node as one source. Curricula that sort rows need this, and refuse anything else."""
    if not isinstance(node, Leaf):
        raise ValueError(
            f"{where}: {what} orders the rows of one source, and this is a curriculum; put {what} inside it instead, "
            "around each source"
        )
    if node.n is None:
        raise ValueError(
            f"{where}: {what} needs to know every row beforehand, and {node.name!r} is a stream; save it first"
        )
    return node
