"""Reads YAML as a Recipe and writes it back equal. Errors in names are found here, before a weight is loaded.

model: {path: distilbert-base-uncased, auto_class: AutoModelForSequenceClassification}
tokenizer: distilbert-base-uncased
args: {output_dir: out, learning_rate: 5e-5}
sources:
  reviews: {path: json, data_files: reviews.jsonl, text: review, label: stars}
train_dataset: reviews
stages:
  - {name: warm, until: 200 steps}
  - name: main
    until: 2 epochs
    loss: [TaskLoss, {use: HiddenMSE, weight: "Linear(1, 0)"}]
    schedule: Resume
    gates: [{use: Plateau, patience: 3}]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.origins import Origin
from hf_stages.core.part import resolve_part
from hf_stages.core.parts import (
    arguments_of,
    build_part,
    read_argument,
    read_collator,
    read_loss,
    read_part,
    record_in_memory,
    refuse_in_memory,
    split_use,
    write_loss,
    write_value,
)
from hf_stages.core.references import reference_problems
from hf_stages.core.registry import (
    KIND_OF_KEY,
    RecipeError,
    Where,
    check_arguments,
    check_training_arguments,
    find_custom,
    find_ready,
    has_part,
)
from hf_stages.core.short_values import describe_value
from hf_stages.core.source_sketch import dataclass_fields
from hf_stages.core.stage import Recipe, Stage
from hf_stages.core.type_hints import hints_of
from hf_stages.recipes import yaml_marks

_LISTS = ("transforms", "monitors", "gates", "exporters")
_DATASETS = ("train_dataset", "eval_dataset")
_STAGE_KEYS = [f.name for f in fields(Stage)]
_RECIPE_KEYS = [f.name for f in fields(Recipe)]
_RecipeOrStage = TypeVar("_RecipeOrStage", Stage, Recipe)


def load(path_or_text: str | Path, *, trust_remote_code: bool = False) -> Recipe:
    """Read a recipe from a YAML file, or from YAML text of several lines. Relative paths start at the file's folder."""
    if isinstance(path_or_text, str) and "\n" in path_or_text:
        return loads(path_or_text, trust_remote_code=trust_remote_code)
    path = Path(path_or_text)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot read the recipe: expected UTF-8 text ({error})") from error
    recipe = loads(text, trust_remote_code=trust_remote_code, file=str(path))
    return _with_origin(resolve_paths(recipe, path.resolve().parent), recipe.origin)


def loads(text: str, *, trust_remote_code: bool = False, file: str = "") -> Recipe:
    """Read a recipe from YAML (or JSON) text.

    No code is run, unless ``trust_remote_code`` allows ``use: module:Class``.
    """
    data, marks = yaml_marks.parse(text, file)
    where = Where(marks=marks, file=file, trusted=trust_remote_code)
    _read_recipe(data, replace(where, sketched=True))  # a misspelt word is found before torch is imported
    return _with_origin(_read_recipe(data, where), Origin(data, marks, file))


def _with_origin(recipe: Recipe, origin: Origin | None) -> Recipe:
    object.__setattr__(recipe, "origin", origin)
    return recipe


def dump(recipe: Recipe, path: str | Path | None = None) -> str:
    """Return YAML that reads back equal, if the recipe holds named parts only. With ``path``, write it there, too."""
    text = yaml_marks.render(to_dict(recipe))
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def from_dict(data: Mapping[str, Any], *, trust_remote_code: bool = False) -> Recipe:
    """Read a recipe from plain data, as ``to_dict`` writes it."""
    return _read_recipe(data, Where(trusted=trust_remote_code))


def stage_from_dict(data: Mapping[str, Any], *, trust_remote_code: bool = False) -> Stage:
    """Read one stage from plain data, as ``to_dict`` writes it."""
    return _read_stage(data, Where(trusted=trust_remote_code))


def resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    """Return a copy in which relative paths of sources, models and the tokenizer start at ``base``, where they exist
    there."""

    def resolved(value: Any) -> Any:
        if type(value) is dict:
            return {name: resolved(item) for name, item in value.items()}
        return resolve_part(value, base)

    def resolve_in(thing: _RecipeOrStage) -> _RecipeOrStage:
        keys = [f.name for f in fields(thing) if f.name in (*_DATASETS, "model", "teacher")]
        return replace(thing, **{key: resolved(getattr(thing, key)) for key in keys})

    stages = tuple(resolve_in(stage) for stage in recipe.stages)
    tokenizer = recipe.tokenizer
    if isinstance(tokenizer, str) and os.path.exists(base / tokenizer):
        tokenizer = str(base / tokenizer)
    return replace(resolve_in(recipe), stages=stages, sources=resolved(recipe.sources), tokenizer=tokenizer)


# ---- reading -------------------------------------------------------------------------------------------------------


def _read_recipe(data: Any, where: Where) -> Recipe:
    if not isinstance(data, Mapping):
        raise where.error(f"expected a mapping with a list of stages, got {describe_value(data)}")
    _check_keys(data, _RECIPE_KEYS, "a recipe", where)
    if "stages" not in data:
        raise where.error("'stages' is missing: expected a list of stages, each with a name and until")
    stages = _read_stages(data["stages"], where / "stages")
    read = {key: _read_value(key, value, where / key) for key, value in data.items() if key != "stages"}
    with where.wrap(["stages"]):
        recipe = Recipe(tuple(stages), **read)
    ready = where.sketched and not isinstance(data["stages"], list | tuple)  # whose stages are not known yet
    for path, problem in reference_problems(recipe) if not ready else ():
        raise replace(where, path=(*where.path, *path)).error(problem)
    return recipe


def _read_stages(value: Any, where: Where) -> tuple[Stage, ...]:
    """Read a list of stages, or a ready recipe's: ``{use: three_stage, until: 6 epochs}``."""
    if isinstance(value, list | tuple):
        return tuple(_read_stage(stage, where / i) for i, stage in enumerate(value))
    if not isinstance(value, Mapping) or "use" not in value:
        found = describe_value(value)
        raise where.error(
            f"expected a list of stages (lines that begin with '- '), got {found}; a ready recipe is {{use: "
            "three_stage}"
        )
    use, arguments = split_use(value, where)
    make = find_custom(use, where) if ":" in use else find_ready(use, where)
    check_arguments(make, arguments, where)
    hints = hints_of(make)
    read = {}
    for key, given in arguments.items():
        bare = isinstance(given, str) and has_part(given, ["losses"])
        at = where / key
        read[key] = read_loss(given, at) if bare else read_argument(key, given, hints.get(key), ["losses"], at)
    with where.wrap(arguments):
        made = make(**read)
        return (Stage("ready", "1 steps"),) if where.sketched else tuple(made.stages)


def _read_stage(data: Any, where: Where) -> Stage:
    if not isinstance(data, Mapping):
        raise where.error(f"expected a stage such as {{name: main, until: 2 epochs}}, got {describe_value(data)}")
    _check_keys(data, _STAGE_KEYS, "a stage", where)
    for key in ("name", "until"):
        if key not in data:
            raise where.error(f"{key!r} is missing: a stage needs at least a name and until, e.g. until: 2 epochs")
    if not isinstance(data["name"], str):
        plain = isinstance(data["name"], int | float)
        quoted = f'; write it in quotes: "{data["name"]}"' if plain else ", such as {name: main, until: 2 epochs}"
        raise (where / "name").error(f"expected text, got {describe_value(data['name'])}{quoted}")
    read = {key: _read_value(key, value, where / key) for key, value in data.items()}
    with where.wrap(data):
        return Stage(**read)


def _check_keys(data: Mapping[str, Any], known: list[str], what: str, where: Where) -> None:
    for key in data:
        if key not in known:
            if what == "a stage" and key in dataclass_fields("transformers.training_args", "TrainingArguments"):
                raise (where / key).error(f"{what} has no {key!r}; put fields of TrainingArguments under args")
            raise (where / key).error(f"{what} has no {key!r}; {did_you_mean(key, known)}")


def _read_value(key: str, value: Any, where: Where) -> Any:
    """Read the value of one key of a stage or of the recipe. The key says what is expected."""
    if value is None:
        return {} if key in ("args", "sources") else (() if key in _LISTS else None)
    if key in _LISTS:
        if isinstance(value, str) or (isinstance(value, Mapping) and "use" in value):
            value = [value]
        if not isinstance(value, list | tuple):
            raise where.error(f"expected a list of parts, got {describe_value(value)}")
        return tuple(read_part(part, [KIND_OF_KEY[key]], where / i) for i, part in enumerate(value))
    if key == "loss":
        return read_loss(value, where)
    if key == "schedule":
        return read_part(value, ["schedules"], where)
    if key in ("args", "sources"):
        if not isinstance(value, Mapping):
            raise where.error(f"expected a mapping, got {describe_value(value)}")
        if key == "args" and where.sketched and where.file:  # other text need not be of a run
            check_training_arguments(value, where)
        return dict(value) if key == "args" else {k: _read_source(v, where / k) for k, v in value.items()}
    if key == "notify":
        told = value if isinstance(value, list | tuple) else [value]
        return tuple(read_part(one, [KIND_OF_KEY[key]], where / i) for i, one in enumerate(told))
    readers = {"data_collator": read_collator, "compute_metrics": read_metrics, "model": _read_model}
    readers |= {"teacher": _read_model, "train_dataset": _read_several, "eval_dataset": _read_several}
    if key in readers:
        return readers[key](value, where)
    if isinstance(value, Mapping):
        refuse_in_memory(value, where)
    if key == "tokenizer" and not isinstance(value, str):
        raise where.error(f"expected a folder or a name on the Hub, got {describe_value(value)}")
    return value


def _read_source(value: Any, where: Where, *, named: bool = False) -> Any:
    if named and isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        hint = "; several go by name: {prose: ..., code: ...}" if named else ""
        hint = f"; a string would be {{path: {value}}}" if isinstance(value, str) else hint
        raise where.error(f"expected {{path: ..., ...}}, got {describe_value(value)}{hint}")
    refuse_in_memory(value, where)
    if "use" in value:
        return read_part(value, ["data"], where)
    return build_part(where.load("hf_stages.data.source", "Source"), value, ["data"], where)


def _read_several(value: Any, where: Where) -> Any:
    """Read a dataset, or several by name."""
    several = isinstance(value, Mapping) and not {"use", "path", "in_memory"} & set(value)
    if several and all(isinstance(v, str | Mapping) for v in value.values()):
        return {name: _read_source(v, where / name, named=True) for name, v in value.items()}
    return _read_source(value, where, named=True)


def _read_model(value: Any, where: Where) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise where.error(f"expected a name, {{path: ...}} or {{config: {{...}}}}, got {describe_value(value)}")
    refuse_in_memory(value, where)
    if "use" in value:
        return read_part(value, ["teachers", "models"], where)
    from hf_stages.models.model_source import ModelSource

    # A model's config is HF's own mapping: its lists stay lists.
    check_arguments(ModelSource, value, where)
    with where.wrap(value):
        return ModelSource(**value)


def read_metrics(value: Any, where: Where) -> Any:
    if isinstance(value, Mapping):
        return read_part(value, ["metrics"], where)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise where.error(f"expected a list of metric names such as [accuracy, f1], got {describe_value(value)}")
    with where.wrap():
        return where.load("hf_stages.evaluation.metrics.metrics", "Metrics")(tuple(names))


# ---- writing -------------------------------------------------------------------------------------------------------


def to_dict(recipe_or_stage: Recipe | Stage) -> dict[str, Any]:
    """Return plain data (JSON's types) of a recipe or of one stage. Values equal to their defaults are left out.

    >>> from hf_stages.schedules import Resume
    >>> to_dict(Stage("main", "2 epochs", schedule=Resume()))
    {'name': 'main', 'until': '2 epochs', 'schedule': {'use': 'Resume'}}
    """
    written = {key: _write(key, value) for key, value in arguments_of(recipe_or_stage) if key != "stages"}
    if isinstance(recipe_or_stage, Recipe):
        written["stages"] = [to_dict(stage) for stage in recipe_or_stage.stages]
    return written


def _write(key: str, value: Any) -> Any:
    from hf_stages.data.source import Source
    from hf_stages.models.model_source import ModelSource

    if isinstance(value, Source | ModelSource):
        return {name: write_value(argument, name) for name, argument in arguments_of(value)}
    if key in ("sources", *_DATASETS) and type(value) is dict:
        return {name: _write("train_dataset", source) for name, source in value.items()}
    if key == "loss":
        return write_loss(value)
    if key == "parents" and len(value) == 1:
        return value[0]
    if key == "compute_metrics" and type(value).__module__ == "hf_stages.evaluation.metrics.metrics":
        written = write_value(value, key)
        return written["names"] if set(written) == {"use", "names"} else written
    if key in (*_DATASETS, "tokenizer") and isinstance(value, list | tuple | Mapping):
        return record_in_memory(value)
    return write_value(value, key)
