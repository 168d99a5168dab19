"""A new part is one new file: recipes, Python and the reference page find it. Importing the package costs little."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hf_stages"


@dataclass(frozen=True)
class Added:
    """One new file of the copy, with one public part in it."""

    file: str
    name: str
    code: str
    room: str
    """Where ``from hf_stages.<room> import <name>`` looks for it."""
    key: str
    """The key of a recipe under which ``use: <name>`` stands."""


def part(base: str, module: str) -> str:
    """A part with a base class, and with arguments that the reference page shows."""
    name = {"Curriculum": "MyCurriculum", "BaseCollator": "MyCollator"}.get(base, f"My{base}")
    return f'''
from dataclasses import dataclass
from hf_stages.{module} import {base}

@dataclass(frozen=True)
class {name}({base}):
    """Added to the copy, as a {base}."""

    strength: float = 1.0
    """How much of it."""
    source: str = "prose"
    """What a curriculum draws from."""
'''


ALONE = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class {name}:
    """Added to the copy, without a base."""

    strength: float = 1.0
    """How much of it."""
'''
READY = '''
"""Added to the copy."""
from hf_stages import Recipe, Stage

def my_recipe(until="5 steps"):
    """One stage."""
    return Recipe((Stage("only", until),))
'''
ADDED = (
    Added("losses/my_loss.py", "MyLoss", part("Loss", "losses.base"), "losses", "loss"),
    Added(
        "transforms/my_transform.py", "MyTransform", part("Transform", "transforms.base"), "transforms", "transforms"
    ),
    Added("schedules/my_schedule.py", "MySchedule", ALONE.format(name="MySchedule"), "schedules", "schedule"),
    Added("gates/my_gate.py", "MyGate", part("Gate", "gates.base"), "gates", "gates"),
    Added("monitors/my_monitor.py", "MyMonitor", part("Monitor", "monitors.base"), "monitors", "monitors"),
    Added("packing/formats/my_format.py", "MyFormat", ALONE.format(name="MyFormat"), "packing.formats", "exporters"),
    Added(
        "data/curricula/my_curriculum.py",
        "MyCurriculum",
        part("Curriculum", "data.curricula.base"),
        "data",
        "train_dataset",
    ),
    Added(
        "data/collators/my_collator.py", "MyCollator", part("BaseCollator", "data.collators.base"), "data", "collator"
    ),
)
NAMES = [added.name for added in ADDED]

ASKED = """
import importlib, json, sys
import hf_stages
from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.recipes.files import load, to_dict

found = {"package": hf_stages.__file__, "dir": dir(hf_stages), "rooms": {}, "read": {}, "written": {}, "same": {}}
for name, room, key in json.loads(sys.argv[1]):
    at_root, own = getattr(hf_stages, name), importlib.import_module(f"hf_stages.{room}")
    part = part_from_dict({"use": name, "strength": 0.5}, key)
    found["same"][name] = at_root is getattr(own, name) is type(part)
    found["rooms"][name] = dir(own)
    found["read"][name] = part.strength
    found["written"][name] = part_to_dict(part, key)
recipe = to_dict(load("run.yaml"))
stage = recipe["stages"][0]
found["file"] = {"train_dataset": recipe["train_dataset"], "loss": stage["loss"], "gates": stage["gates"]}
print(json.dumps(found))
"""
RECIPE = """
model: {config: {model_type: llama}}
args: {output_dir: out}
sources:
  prose: {path: text, data_files: prose.txt}
train_dataset: {use: MyCurriculum, strength: 0.5}
stages:
  - name: only
    until: 5 steps
    loss: {use: MyLoss, strength: 0.5}
    gates: [MyGate]
"""


def run(tree: Path, code: str, *args: str) -> str:
    """What code prints that imports hf_stages from ``tree``."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert not done.returncode, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the package with a few files more, and no other change."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(PACKAGE, tree / "hf_stages", ignore=shutil.ignore_patterns("__pycache__"))
    for added in ADDED:
        file = tree / "hf_stages" / added.file
        assert not file.exists()
        file.write_text(added.code, encoding="utf-8")
    (tree / "hf_stages/recipes/ready/my_recipe.py").write_text(READY.lstrip(), encoding="utf-8")
    (tree / "run.yaml").write_text(RECIPE, encoding="utf-8")
    return tree


@pytest.fixture(scope="module")
def found(tree) -> dict:
    """What Python and recipes find in the copy: one process for all parts, as it imports torch."""
    asked = json.dumps([(added.name, added.room, added.key) for added in ADDED])
    found = json.loads(run(tree, ASKED, asked).splitlines()[-1])
    assert Path(found["package"]).parent == tree / "hf_stages"
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_root_the_room_and_a_recipe_give_the_same_class(found, name):
    assert found["same"][name]


@pytest.mark.parametrize("name", NAMES)
def test_dir_of_the_root_and_of_the_room_show_the_part(found, name):
    assert name in found["dir"]
    assert name in found["rooms"][name]


def test_dir_of_the_root_shows_what_a_script_needs_and_no_helpers(found):
    assert {"Stage", "StagedTrainer", "LogitKL", "Ternarize", "three_stage", "pack"} <= set(found["dir"])
    assert "after_import" not in found["dir"]


@pytest.mark.parametrize("name", NAMES)
def test_the_part_is_read_and_written_with_its_arguments(found, name):
    assert found["read"][name] == 0.5
    assert found["written"][name] == {"use": name, "strength": 0.5}


def test_the_reference_page_shows_each_part_with_its_arguments(tree):
    page = run(tree, "from hf_stages.commands.reference import recipe_reference; print(recipe_reference())")
    for name in NAMES:
        section = page.split(f"### {name}\n")[1].split("\n#")[0]
        assert "Added to the copy" in section
        assert "| `strength` | `float` | `1.0` | How much of it." in section
    assert "| `my_recipe` | Added to the copy." in page


def test_a_recipe_file_that_uses_them_reads_and_writes_back(found):
    assert found["file"] == {
        "train_dataset": {"use": "MyCurriculum", "strength": 0.5},
        "loss": {"use": "MyLoss", "strength": 0.5},
        "gates": [{"use": "MyGate"}],
    }


def test_a_misspelt_argument_is_told_before_torch_is_imported(tree):
    (tree / "misspelt.yaml").write_text(RECIPE.replace("MyLoss, strength", "MyLoss, strenght"), encoding="utf-8")
    code = """
import contextlib, io, sys
from hf_stages.commands import cli
with contextlib.redirect_stderr(io.StringIO()) as said:
    cli.main(["plan", "misspelt.yaml"])
print("torch" in sys.modules, said.getvalue())
"""
    shown = run(tree, code)
    assert shown.startswith("False")
    assert "MyLoss takes no argument 'strenght'; did you mean 'strength'?" in shown


def test_a_ready_recipe_is_found_by_its_name(tree):
    code = "import hf_stages; print('my_recipe' in dir(hf_stages), hf_stages.my_recipe('7 steps').stages[0].until)"
    assert run(tree, code).split("\n")[0] == "True 7 steps"


# ---- what an import costs -------------------------------------------------------------------------------------------

SECONDS = """
import sys, time
began = time.process_time()
import {module}
heavy = ("torch", "transformers", "numpy", "yaml")
print(time.process_time() - began, *(name for name in heavy if name in sys.modules))
"""


def test_the_root_imports_in_fifty_milliseconds_and_leaves_the_large_packages_alone(tree):
    """Seconds of this process's CPU, so that busy cores do not count; ten milliseconds where they are idle."""
    (tree / "empty_package").mkdir()
    (tree / "empty_package/__init__.py").touch()
    took: dict[str, list[float]] = {"empty_package": [], "hf_stages": []}
    for _ in range(5):
        for module, seconds in took.items():
            first, *imported = run(tree, SECONDS.format(module=module)).split()
            seconds.append(float(first))
            assert not imported, f"import {module} imports {', '.join(imported)}"
    beyond = statistics.median(took["hf_stages"]) - statistics.median(took["empty_package"])
    assert beyond < 0.05, f"import hf_stages takes {beyond * 1000:.0f} ms: what did it begin to import?"
