"""Names of parts and their classes. Folders are the registry: ``use: LogitKL`` is the class in losses/logit_kl.py."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.recorded_modules import module_recorded_as, recorded_module
from hf_stages.core.short_values import shorten_message
from hf_stages.core.source_sketch import dataclass_fields, sketch, sketch_of_anything

_PACKAGE = Path(__file__).parents[1]

KIND_OF_KEY = {
    "loss": "losses",
    "losses": "losses",
    "transforms": "transforms",
    "schedule": "schedules",
    "gates": "gates",
    "then": "actions",
    "notify": "notifiers",
    "monitors": "monitors",
    "every": "occasions",
    "exporters": "exporters",
    "compute_metrics": "metrics",
    "train_dataset": "data",
    "eval_dataset": "data",
    "data_collator": "data",
    "collator": "data",
    "sources": "data",
    "source": "data",
    "augment": "data",
    "teacher": "teachers",
    "model": "models",
}
"""The kind of part that stands under each key of a recipe. ``PLACES`` says in which files a kind is looked up."""

PLACES = {
    "losses": ("losses",),
    "transforms": ("transforms",),
    "schedules": ("schedules",),
    "gates": ("gates", "gates/detectors"),
    "actions": ("gates/actions",),
    "notifiers": ("gates/notify",),
    "monitors": ("monitors",),
    "exporters": ("packing/formats",),
    "metrics": ("evaluation/metrics",),
    "data": ("data/source.py", "data/at_depths.py", "data/curricula", "data/collators", "data/augmentation"),
    "teachers": ("teachers/declared.py",),
    "models": ("models/model_source.py",),
    "curves": ("core/curves.py",),
    "occasions": ("core/occasions.py",),
    "recipes": ("recipes/ready",),
}
"""The files of each kind: folders in which each file holds the part of its name, and files with several parts."""


class RecipeError(ValueError):
    """A recipe cannot be read. The message says where, what was expected, what was found and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten_message(message))


@dataclass(frozen=True)
class Where:
    """A position in a recipe: its path, and the line and column where it was read from YAML.

    >>> str(Where() / "stages" / 1 / "loss" / "beta")
    'stages[1].loss.beta'
    """

    path: tuple[str | int, ...] = ()
    """Keys and indexes from the top of the recipe."""
    marks: Mapping[tuple[str | int, ...], tuple[int, int]] = field(default_factory=dict, repr=False)
    """Line and column of each path; empty where the recipe is no YAML text."""
    file: str = ""
    """The file's name; empty where there is none."""
    trusted: bool = False
    """Whether ``use: module:Class`` may import code from outside hf_stages."""
    sketched: bool = False
    """Whether parts are only sketched from their source: names and arguments are checked, nothing is imported."""

    def load(self, module: str, name: str) -> Any:
        """Import a class or a function; where parts are only ``sketched``, return its sketch."""
        return sketch(module, name) if self.sketched else getattr(importlib.import_module(module), name)

    def __truediv__(self, key: str | int) -> Where:
        return replace(self, path=(*self.path, key))

    def __str__(self) -> str:
        text = ""
        for key in self.path:
            text += f"[{key}]" if isinstance(key, int) else f".{key}"
        text = text.lstrip(".") or "recipe"
        mark = next((self.marks[p] for p in self._upwards() if p in self.marks), None)
        if mark is None:
            return f"{self.file}: {text}" if self.file else text
        line, column = mark
        return f"{self.file}:{line}:{column}: {text}" if self.file else f"line {line}, column {column}: {text}"

    def _upwards(self) -> Iterator[tuple[str | int, ...]]:
        return (self.path[:length] for length in range(len(self.path), -1, -1))

    def error(self, message: str) -> RecipeError:
        """Make the error that says ``message`` about this position."""
        return RecipeError(f"{self}: {message}")

    @contextmanager
    def wrap(self, keys: Iterable[str] = ()) -> Iterator[None]:
        """Put this position in front of a constructor's error; ``keys`` are arguments that its text may name."""
        try:
            yield
        except RecipeError:
            raise
        except (ValueError, TypeError) as error:
            found = {key: re.search(rf"\b{re.escape(key)}: ", str(error)) for key in keys}
            first = min((m.start(), key) for key, m in found.items() if m)[1] if any(found.values()) else None
            message = str(error).removeprefix(f"{first}: ")
            raise (self / first if first else self).error(message) from error


def find_class(name: str, kinds: Iterable[str], where: Where) -> type:
    """Return the class of that name from the first of the kinds that has it. Only its own file is imported."""
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        module = module_of(name, kind)
        if module is not None:
            return where.load(module, name)
    missing = [kind for kind in kinds if not list_parts(kind)]
    if len(missing) == len(kinds):
        raise where.error(
            f"unknown part {name!r}: this version of hf_stages has no {' and no '.join(missing)} of its own; "
            f"name your own class as 'module:{name}', or leave it out"
        )
    known = [found for kind in kinds for found in part_names(kind)]
    raise where.error(f"unknown part {name!r} in {' or '.join(map(_package_of, kinds))}; {did_you_mean(name, known)}")


def _package_of(kind: str) -> str:
    """Name the package or module that a user may import the parts of a kind from.

    >>> _package_of("losses"), _package_of("data"), _package_of("exporters"), _package_of("curves")
    ('hf_stages.losses', 'hf_stages.data', 'hf_stages.packing.formats', 'hf_stages.core.curves')
    """
    place = PLACES[kind][0].removesuffix(".py").replace("/", ".")
    return f"hf_stages.{kind if place.split('.')[0] == kind else place}"


def find_ready(name: str, where: Where = Where()) -> Any:
    """Return the ready recipe of that name: a function in the file of the same name."""
    module = module_of(name, "recipes")
    if module is None:
        raise where.error(f"unknown recipe {name!r} in hf_stages.recipes; {did_you_mean(name, part_names('recipes'))}")
    return where.load(module, name)


def has_part(name: str, kinds: Iterable[str]) -> bool:
    """Whether one of the kinds has a part of that name."""
    return any(module_of(name, kind) is not None for kind in kinds)


def module_of(name: str, kind: str) -> str | None:
    """Return the module that defines a part; None where the kind has no part of that name."""
    return next((module for module, known in list_parts(kind) if known == name), None)


def part_names(kind: str) -> list[str]:
    """List the names of all parts of a kind."""
    return [name for _, name in list_parts(kind)]


def list_parts(kind: str) -> list[tuple[str, str]]:
    """List (module, name) of every part of a kind. A ready recipe is a function, any other part is a class."""
    found = []
    for path in _files(kind):
        module = ".".join(("hf_stages", *path.relative_to(_PACKAGE).with_suffix("").parts))
        classes, functions = _public_names(path, path.stat().st_mtime_ns)
        holds_several = path.relative_to(_PACKAGE).as_posix() in PLACES[kind]
        for name in functions if kind == "recipes" else classes:
            # Compared without underscores, so that acronyms need no rule: LogitKL is logit_kl.py.
            if holds_several or path.stem.replace("_", "") == name.replace("_", "").lower():
                found.append((module, name))
    return found


def _files(kind: str) -> list[Path]:
    places = [_PACKAGE / place for place in PLACES.get(kind, ())]
    found = [[place] if place.suffix else sorted(place.glob("*.py")) for place in places]
    return [path for paths in found for path in paths if not path.stem.startswith("_")]


@lru_cache(maxsize=512)
def _public_names(path: Path, changed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the names of a file's public classes and functions, without importing it. ``changed`` is for the cache."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]
    classes = tuple(node.name for node in public if isinstance(node, ast.ClassDef))
    return classes, tuple(node.name for node in public if isinstance(node, ast.FunctionDef))


def find_custom(use: str, where: Where) -> Any:
    """Import ``module:Class`` from outside hf_stages; refused without trust, because importing a module runs it."""
    module, _, name = use.partition(":")
    ours = module.split(".")[0] == "hf_stages"
    if not (ours or where.trusted):
        raise where.error(
            f"use: {use!r} names code outside hf_stages, and importing it runs it. If you know and trust {module!r}, "
            "allow it: load(..., trust_remote_code=True), or --trust-remote-code on the command line"
        )
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise where.error(f"use: expected 'package.module:Class', got {use!r}")
    if where.sketched:
        return sketch_of_anything(name)
    try:
        found: Any = importlib.import_module(module_recorded_as(module))
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        hint = "; install it, or name its folder: PYTHONPATH=FOLDER hf-stages ..." if absent else ""
        raise where.error(f"use: cannot import {use!r}: {error}{hint}") from error
    if ours and not (isinstance(found, type) and found.__module__.split(".")[0] == "hf_stages"):
        raise where.error(f"use: {use!r} is no class of hf_stages")
    if not callable(found):
        raise where.error(f"use: expected a class or a function, {use!r} is a {type(found).__name__}")
    return found


def importable_as(target: Any) -> str | None:
    """Return ``module:qualname``; None where importing that would not give the very same class or function."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return f"{recorded_module(module)}:{name}" if found is target else None


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class or a function by name, without ``*args``."""
    parameters = inspect.signature(target).parameters
    return {name: p for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_POSITIONAL}


def check_arguments(target: Any, given: Iterable[str], where: Where, *, supplied: Iterable[str] = ()) -> None:
    """Refuse unknown and missing arguments, by the signature. ``supplied`` are arguments that come from elsewhere."""
    parameters = parameters_of(target)
    name = target.__name__
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = [p for p, info in parameters.items() if info.kind is not inspect.Parameter.VAR_KEYWORD]
    takes = f"it takes {', '.join(known)}" if known else "it takes no arguments"
    given = list(given)
    for key in given:
        if key not in known and not open_ended:
            hint = did_you_mean(key, known, there_are="it takes") if known else takes
            raise (where / key).error(f"{name} takes no argument {key!r}; {hint}")
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in given and key not in set(supplied):
            raise where.error(f"{name} needs the argument {key!r}, which is missing; {takes}")


def check_training_arguments(given: Iterable[str], where: Where) -> None:
    """Refuse names that are no fields of transformers' TrainingArguments, without importing it."""
    known = dataclass_fields("transformers.training_args", "TrainingArguments")
    for key in given:
        if key not in known:
            raise (where / key).error(f"TrainingArguments has no {key!r}; {did_you_mean(key, known)}")
