"""docs/reference.md says of every key of a recipe what the code that reads it says."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from hf_stages.commands.cli import main
from hf_stages.commands.reference import recipe_reference
from hf_stages.core.registry import list_parts
from hf_stages.core.source_docs import DocumentedClass
from hf_stages.core.source_sketch import sketch
from hf_stages.core.stage import Recipe, Stage
from hf_stages.data.source import Source
from hf_stages.models.model_source import ModelSource
from hf_stages.planning.args_by_stage import ALLOWED, REASONS
from hf_stages.teachers.declared import CachedTeacher, Teacher

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
FOLDERS = [
    "curves",
    "losses",
    "transforms",
    "schedules",
    "gates",
    "data",
    "metrics",
    "exporters",
    "teacher_source",
    "model_source",
]
PARTS = [part for folder in FOLDERS for part in list_parts(folder)]
NOUNS = [("hf_stages.core.stage", "Stage"), ("hf_stages.core.stage", "Recipe")]


def _section(title: str) -> str:
    return recipe_reference().split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == recipe_reference(), "hf-stages recipe --reference > docs/reference.md"


def test_the_command_prints_it(capsys):
    assert main(["recipe", "--reference"]) == 0
    assert capsys.readouterr().out == recipe_reference()


@pytest.mark.parametrize(
    ("noun", "title"), [(Recipe, "The run"), (Stage, "A stage"), (Source, "sources"), (ModelSource, "model")]
)
def test_every_field_stands_in_its_section(noun, title):
    missing = [f.name for f in fields(noun) if f"| `{f.name}` |" not in _section(title)]
    assert not missing


@pytest.mark.parametrize("noun", [Recipe, Stage, Source, ModelSource, Teacher, CachedTeacher])
def test_fields_and_defaults_are_those_of_the_class(noun):
    told = {a.name: a.default for a in DocumentedClass(noun.__module__, noun.__name__).arguments}
    assert list(told) == list(inspect.signature(noun).parameters)
    for field in fields(noun):
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        assert told[field.name] == (None if made is MISSING else repr(made))


@pytest.mark.parametrize(("module", "name"), [*PARTS, *NOUNS], ids=lambda value: value.rsplit(".", 1)[-1])
def test_arguments_are_those_that_a_recipe_may_give_and_each_is_explained(module, name):
    part = DocumentedClass(module, name)
    assert part.doc
    if "evaluate.Metric" in part.bases:
        return
    assert [a.name for a in part.arguments] == list(inspect.signature(sketch(module, name)).parameters)
    bare = [a.name for a in part.arguments if not a.doc]
    assert not bare, f"{name}: write a string under {', '.join(bare)}"


@pytest.mark.parametrize(("module", "name"), PARTS, ids=lambda value: value.rsplit(".", 1)[-1])
def test_every_part_has_its_entry(module, name):
    elsewhere = name in ("Curve", "Collator", "Source", "ModelSource", "Metrics") or ".metrics." in module
    assert elsewhere or f"\n### {name}\n" in recipe_reference()


def test_inherited_arguments_and_names_of_constants():
    binarize = {a.name: a for a in DocumentedClass("hf_stages.transforms.binarize", "Binarize").arguments}
    assert binarize["method"].default == "'mean'"  # its own
    assert binarize["strength"].hint == "float | Curve"  # its base's, in another file
    assert "curve has to end at 1" in binarize["strength"].doc
    lora = {a.name: a.default for a in DocumentedClass("hf_stages.transforms.add_lora", "AddLora").arguments}
    assert lora["alpha"] == "16.0"
    direction = {a.name: a.hint for a in DocumentedClass("hf_stages.losses.logit_kl", "LogitKL").arguments}["direction"]
    assert direction == "Literal['forward', 'reverse', 'jsd']"


def test_what_a_stage_may_differ_in_and_why_not_in_the_rest():
    section = _section("args")
    assert not [name for name in ALLOWED if f"`{name}`" not in section]
    assert not [name for name, reason in REASONS.items() if f"| `{name}` | {reason} |" not in section]
    assert not ALLOWED & set(REASONS)
