"""Names in a recipe that stand for something else in it: sources of data, and earlier stages that teach.

A recipe's text is checked with them before any part is imported; a recipe that was made in Python, before anything
is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.stage import Recipe

Path = tuple[str | int, ...]
"""Where something stands in a recipe: ``("stages", 0, "eval_dataset", "code")``."""
_STAGE = "stage:"


@runtime_checkable
class DrawsByName(Protocol):
    """A part that draws from several sources, some of which it names: a curriculum."""

    def source_names(self) -> tuple[str, ...]: ...


@runtime_checkable
class HoldsDataset(Protocol):
    """A part that says how a dataset is evaluated, which it may name (``AtDepths``)."""

    dataset: Any

    def around(self, dataset: Any) -> Any: ...


def source_names_in(value: Any) -> tuple[str, ...]:
    """Return the sources that are named in the place of a dataset: one, several by name, or those of a curriculum."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, HoldsDataset):
        return source_names_in(value.dataset)
    if type(value) is dict:
        return tuple(name for item in value.values() for name in source_names_in(item))
    return value.source_names() if isinstance(value, DrawsByName) else ()


def named_sources(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Yield every place in a recipe that names a source, and the name."""
    nouns: list[tuple[Path, Any]] = [((), recipe)]
    nouns += [(("stages", i), stage) for i, stage in enumerate(recipe.stages)]
    for path, noun in nouns:
        for key in ("train_dataset", "eval_dataset"):
            value = getattr(noun, key)
            held = value.items() if type(value) is dict else [(None, value)]
            for name, item in held:
                at = (*path, key) if name is None else (*path, key, name)
                yield from ((at, source) for source in source_names_in(item))
    for i, stage in enumerate(recipe.stages):
        for j, gate in enumerate(stage.gates):
            yield from (
                (("stages", i, "gates", j, "source"), name)
                for name in source_names_in(getattr(gate, "replay_source", None))
            )
    for key, source in recipe.sources.items():
        yield from ((("sources", key), name) for name in source_names_in(source))


def reference_problems(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Yield (place, problem) for names of sources and stages that lead nowhere.

    A curriculum in the place of evaluation data, where rows are only measured, is a problem too, and so are depths in
    the place of training data. A recipe without sources may name them all the same: the trainer may bring its own.
    """
    if recipe.sources:
        yield from unknown_sources(recipe)
    names = [stage.name for stage in recipe.stages]
    for path, name, before in named_teachers(recipe):
        if name in before:
            continue
        if name in names:
            yield path, f"{_STAGE + name!r} is not finished by then; a teacher stands before its student"
        else:
            yield path, f"no earlier stage is called {name!r}; {did_you_mean(name, before, there_are='there are')}"
    nouns: list[tuple[Path, Any]] = [((), recipe), *((("stages", i), stage) for i, stage in enumerate(recipe.stages))]
    for path, noun in nouns:
        if isinstance(noun.eval_dataset, DrawsByName):
            problem = f"{type(noun.eval_dataset).__name__} is for training; expected a dataset"
            yield (*path, "eval_dataset"), problem
        if isinstance(noun.train_dataset, HoldsDataset):
            problem = f"{type(noun.train_dataset).__name__} is for evaluation; expected a dataset"
            yield (*path, "train_dataset"), problem


def unknown_sources(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Yield (place, problem) for each name that no source of the recipe has."""
    for path, name in named_sources(recipe):
        if name not in recipe.sources:
            yield path, no_source(name, recipe.sources)


def no_source(name: str, known: Iterable[str]) -> str:
    """Say that no source has this name, and which names there are."""
    known = list(known)
    hint = did_you_mean(name, known, there_are="there are") if known else "the recipe has no sources"
    return f"no source is called {name!r}; {hint}"


def look_up(value: Any, sources: Mapping[str, Any], where: str) -> Any:
    """Return the source that a name stands for; what is no name stays as it is."""
    if isinstance(value, HoldsDataset):
        return value.around(look_up(value.dataset, sources, where))
    if not isinstance(value, str):
        return value
    if value not in sources:
        raise ValueError(f"{where}: {no_source(value, sources)}")
    return sources[value]


def look_up_all(value: Any, sources: Mapping[str, Any], where: str) -> Any:
    """Return the source that a name stands for, or those of several by name."""
    if not isinstance(value, Mapping):
        return look_up(value, sources, where)
    return {name: look_up(item, sources, f"{where}[{name!r}]") for name, item in value.items()}


def teaching_stage(teacher: Any) -> str | None:
    """Return the stage that ``"stage:<name>"`` names; None where the teacher is something else.

    >>> teaching_stage("stage:first"), teaching_stage("some/model")
    ('first', None)
    """
    return teacher.removeprefix(_STAGE) if isinstance(teacher, str) and teacher.startswith(_STAGE) else None


def named_teachers(recipe: Recipe) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """Yield every place that names a stage as a teacher, that name, and the stages that may teach there.

    A stage learns from stages before it. The recipe's own teacher may be any stage, since others learn from it.
    """
    names = tuple(stage.name for stage in recipe.stages)
    if (name := teaching_stage(recipe.teacher)) is not None:
        yield ("teacher",), name, names
    for i, stage in enumerate(recipe.stages):
        if (name := teaching_stage(stage.teacher)) is not None:
            yield ("stages", i, "teacher"), name, names[:i]


def place_of(recipe: Recipe, path: Path) -> str:
    """Write a place for messages to someone who has no text of the recipe: a stage by its name.

    >>> from hf_stages.core.stage import Stage
    >>> place_of(Recipe([Stage("main", "1 steps")]), ("stages", 0, "eval_dataset", "code"))
    "stage 'main': eval_dataset.code"
    """
    if path[:1] == ("stages",) and len(path) > 2:
        return f"stage {recipe.stages[int(path[1])].name!r}: {'.'.join(map(str, path[2:]))}"
    return ".".join(map(str, path))
