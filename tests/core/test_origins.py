"""Errors that need models and data to be found still name the line of the recipe that they are about."""

from __future__ import annotations

import json

import pytest

from hf_stages import recipes
from hf_stages.core.origins import Origin
from hf_stages.core.registry import RecipeError
from hf_stages.training.from_recipe import prepare
from tests.support import tiny

MODEL = {key: getattr(tiny.llama_config(), key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
MODEL |= {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2}
HEAD = f"""\
model: {{config: {json.dumps(MODEL)}}}
args:
  output_dir: out
  use_cpu: true
  report_to: none
sources:
  rows:
    path: json
    data_files: rows.jsonl
train_dataset: rows
stages:
  - name: a
    until: 2 steps
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"input_ids": [3, 4], "labels": [3, 4]}) for _ in "1234"))

    def run(text: str) -> None:
        (tmp_path / "run.yaml").write_text(text)
        prepare(recipes.load(tmp_path / "run.yaml"), output_dir=str(tmp_path / "out")).plan()

    return run


TEACHER = f"    teacher: {{config: {json.dumps({**MODEL, 'num_hidden_layers': 4})}}}\n"
CASES = {
    "args": (
        HEAD.replace("use_cpu: true", "use_cpu: true\n  learning_rate: fast"),
        "5:3: args.learning_rate: expected",
    ),
    "args of a stage": (
        HEAD + "    args:\n      weight_decay: none\n",
        "15:7: stage 'a': args.weight_decay: expected a number",
    ),
    "args that may not differ": (HEAD + "    args: {seed: 1}\n", "14:12: stage 'a': args.seed: 'seed' cannot differ"),
    "a missing file": (HEAD.replace("rows.jsonl", "none.jsonl"), "7:3: sources.rows: source 'json': cannot load"),
    "a missing column": (
        HEAD.replace("data_files: rows.jsonl", "data_files: rows.jsonl\n    keep:\n      - nothing"),
        "11:9: sources.rows: source 'json': there is no column 'nothing'",
    ),
    "a teacher's layer": (
        HEAD + TEACHER + "    loss:\n      - TaskLoss\n      - use: HiddenMSE\n        layers: {1: 9}\n",
        "18:9: stage 'a': loss: HiddenMSE: layers: teacher layer 9",
    ),
    "one loss without its list": (
        HEAD + TEACHER + "    loss:\n      use: HiddenMSE\n      layers: {9: 1}\n",
        "17:7: stage 'a': loss: HiddenMSE: layers: student layer 9",
    ),
    "a student's layer": (
        HEAD
        + "    transforms:\n      - use: Freeze\n        patterns: lm_head\n"
        + "      - use: ReduceLayers\n        keep: [9]\n",
        "18:9: stage 'a': transforms[1] ReduceLayers: LlamaForCausalLM: keep: expected layers 1 to 2",
    ),
    "a config's field": (
        HEAD.replace("hidden_size", "hiden_size"),
        r"1:\d+: model: config: .*did you mean 'hidden_size'",
    ),
    "a gate": (
        HEAD + "    gates:\n      - {use: Plateau, metric: eval_loss, patience: 2}\n",
        "15:9: stage 'a': gates[0] Plateau: eval_loss is never measured",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_late_errors_name_the_line(name, plan):
    text, words = CASES[name]
    pattern = words if name == "a config's field" else words.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(RecipeError, match=rf"^[^:]*run\.yaml:{pattern}"):
        plan(text)


def test_a_recipe_made_in_python_has_no_lines(plan, tmp_path, monkeypatch):
    plan(HEAD)
    monkeypatch.chdir(tmp_path)
    recipe = recipes.loads(HEAD)
    again = recipes.from_dict({**recipes.to_dict(recipe), "args": {"output_dir": "out", "learning_rate": "fast"}})
    assert (recipe.origin is None, again.origin) == (False, None)
    with pytest.raises(ValueError, match=r"^args\.learning_rate: expected"):
        prepare(again)


def test_errors_in_text_without_a_file_name_the_line():
    with pytest.raises(RecipeError, match=r"^line 5, column 3: args\.learning_rate"):
        prepare(recipes.loads(HEAD.replace("use_cpu: true", "use_cpu: true\n  learning_rate: fast")))


def test_a_value_that_a_stage_takes_from_the_recipe_is_found_there():
    origin = recipes.loads(HEAD).origin
    assert (
        origin.locate("stage 'a': train_dataset: is empty") == "line 10, column 1: stage 'a': train_dataset: is empty"
    )
    assert origin.locate("stage 'a': no loss").startswith("line 12, column 5: ")


def test_a_message_about_no_value_stays_as_it_is():
    assert Origin({}, {}, "").locate("no such place") == "no such place"
    assert Origin({}, {}, "run.yaml").locate("no such place") == "run.yaml: no such place"
