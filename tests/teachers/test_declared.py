"""Teachers as they are declared: by path, in fewer bits, in YAML and on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_stages import CachedTeacher, Teacher, recipes
from hf_stages.losses import LogitKL, TaskLoss
from hf_stages.recipes.files import resolve_paths
from hf_stages.teachers.cache_reader import CacheReader
from hf_stages.teachers.live import LiveTeacher
from tests.support import tiny
from tests.teachers.caching import CPU, WIDE, refused, trained

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("saved")
    tiny.llama(7, **WIDE).save_pretrained(folder)
    return str(folder)


def test_a_path_teaches_as_its_model_does(tmp_path, saved):
    loss = 1.0 * LogitKL()
    live = trained(tmp_path / "live", tiny.llama(7, **WIDE), loss)
    assert trained(tmp_path / "path", Teacher(saved), loss).equal(live)
    half = Teacher(saved, dtype="bfloat16")
    assert half.load(tiny.llama()).dtype == torch.bfloat16
    assert half.skeleton(tiny.llama()).device.type == "meta"
    assert 0 < (trained(tmp_path / "half", half, loss) - live).abs().max() < 1e-2


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_bitsandbytes(tmp_path, saved, load_in):
    bnb = pytest.importorskip("bitsandbytes", reason="no bitsandbytes: quantized teachers are not tested")
    teacher = Teacher(saved, load_in=load_in)
    model = teacher.load(tiny.llama())
    kind = {"8bit": bnb.nn.Linear8bitLt, "4bit": bnb.nn.Linear4bit}[load_in]
    assert type(model.model.layers[0].mlp.up_proj) is kind
    batch = {"input_ids": torch.tensor(tiny.lm_data(4)["input_ids"])}
    true = tiny.llama(7, **WIDE)(**batch).logits
    found = LiveTeacher(model, frozenset({"logits"}), CPU)(batch).logits.float()
    assert 0 < (found - true).norm() < {"8bit": 0.05, "4bit": 0.3}[load_in] * true.norm()
    trained(tmp_path / "run", teacher, TaskLoss() + LogitKL())
    cached = teacher.cache(tiny.lm_data(), tmp_path / "cache")
    batch = {"input_ids": torch.tensor(tiny.lm_data(4)["input_ids"])}
    torch.testing.assert_close(CacheReader(cached, frozenset({"logits"}))(batch).logits, found, rtol=1e-2, atol=1e-3)


def test_bad_teachers_are_refused_in_words(tmp_path, saved, monkeypatch):
    with pytest.raises(ValueError, match="load_in: expected '8bit', '4bit' or None, got 'int8'"):
        Teacher("x", load_in="int8")
    with pytest.raises(ValueError, match="load_in: this model is loaded already"):
        Teacher(tiny.llama(), load_in="8bit")
    with pytest.raises(ValueError, match="model: expected a path or a model, got int"):
        Teacher(3)
    refused(tmp_path, Teacher(str(tmp_path / "nowhere")), "stage 'a': teacher '.*nowhere': ")
    student = tiny.llama()
    refused(tmp_path, Teacher(student), "it is the model that is trained", model=student)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"load_in='8bit' needs bitsandbytes: pip install 'hf_stages\[bnb\]'"):
        Teacher(saved, load_in="8bit").load(tiny.llama())


def test_yaml_both_ways(tmp_path):
    text = """
model: student
teacher: {use: Teacher, model: big, load_in: 8bit, auto_class: AutoModelForCausalLM}
stages:
  - name: a
    until: 1 steps
    teacher: {use: CachedTeacher, folder: cache}
  - {name: b, until: 1 steps, teacher: base}
"""
    recipe = recipes.loads(text)
    assert recipe.teacher == Teacher("big", load_in="8bit", auto_class="AutoModelForCausalLM")
    assert recipe["a"].teacher == CachedTeacher("cache")
    assert recipes.loads(recipes.dump(recipe)) == recipe
    assert "use: CachedTeacher" in recipes.dump(recipe)
    (tmp_path / "cache").mkdir()
    (tmp_path / "big").mkdir()
    found = resolve_paths(recipe, tmp_path)
    assert (found.teacher.model, found["a"].teacher.folder) == (str(tmp_path / "big"), str(tmp_path / "cache"))


def test_a_recipe_is_cached_and_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    from hf_stages.commands.cli import main

    monkeypatch.chdir(tmp_path)
    tiny.llama(7).save_pretrained("big")
    tiny.llama(0).save_pretrained("small")
    for name, seed in (("one", 0), ("two", 1)):
        rows = "\n".join(json.dumps(row) for row in tiny.lm_data(16, seed=seed))
        Path(f"{name}.jsonl").write_text(rows)
    text = """
model: {path: small}
args: {output_dir: out, use_cpu: true, report_to: none, logging_strategy: "no"}
sources: {one: {path: json, data_files: one.jsonl}, two: {path: json, data_files: two.jsonl}}
teacher: TEACHER
train_dataset: one
stages:
  - {name: a, until: 2 steps, loss: [{use: LogitKL}, {use: HiddenMSE, layers: {1: 2}}]}
  - {name: b, until: 2 steps, loss: [TaskLoss, LogitKL], train_dataset: two}
"""
    Path("run.yaml").write_text(text.replace("TEACHER", "{use: Teacher, model: big}"))
    assert main(["cache-teacher", "run.yaml", "--to", "cache", "--k", "8", "--hidden", "2"]) == 0
    shown = capsys.readouterr().out
    assert "32 rows, 512 tokens" in shown
    assert "k=8 of 64 logits" in shown
    Path("cached.yaml").write_text(text.replace("TEACHER", "{use: CachedTeacher, folder: cache}"))
    shutil.rmtree("big")
    assert main(["run", "cached.yaml"]) == 0
    assert main(["cache-teacher", "cached.yaml", "--to", "again"]) == 2
    assert "expected {path: ...} or {use: Teacher, ...}, got CachedTeacher(" in capsys.readouterr().err
