"""Impossible values in a model's config are refused with their line, whatever error a library raises."""

from __future__ import annotations

import json

import pytest

from hf_stages import recipes
from hf_stages.commands.cli import main
from hf_stages.core.registry import RecipeError
from hf_stages.models.model_source import ModelSource
from hf_stages.training.from_recipe import prepare
from tests.support import tiny

MODEL = {key: getattr(tiny.llama_config(), key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
MODEL |= {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2}
RECIPE = """\
model:
  config:
{model}
teacher:
  config:
{teacher}
args: {{output_dir: out, use_cpu: true, report_to: none}}
train_dataset: {{path: json, data_files: rows.jsonl}}
stages:
  - {{name: a, until: 2 steps, loss: LogitKL}}
"""


@pytest.fixture
def recipe(tmp_path):
    """``recipe(teacher={...})`` is a file whose config has these values, and a line for each."""
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"input_ids": [3, 4], "labels": [3, 4]}) for _ in "1234"))

    def make(**changes):
        lines = {
            key: "\n".join(f"    {k}: {json.dumps(v)}" for k, v in {**MODEL, **changes.get(key, {})}.items())
            for key in ("model", "teacher")
        }
        (tmp_path / "run.yaml").write_text(RECIPE.format(**lines))
        return tmp_path / "run.yaml"

    return make


WRONG = [
    ({"hidden_size": "64"}, ".hidden_size", "expected int, got str"),
    ({"hidden_size": "x"}, ".hidden_size", "expected int, got str"),
    ({"num_attention_heads": 3}, "", r"The hidden size \(32\) is not a multiple of the number of attention heads"),
    ({"num_attention_heads": 0}, ".num_attention_heads", "ZeroDivisionError"),
    ({"hidden_act": "nope"}, ".hidden_act", "no model can be built with 'nope': KeyError"),
    ({"vocab_size": -1}, ".vocab_size", "expected a number of at least 0, got -1"),
    ({"num_hidden_layers": -1}, ".num_hidden_layers", "expected a number of at least 0, got -1"),
    ({"vocab_size": 10**30}, ".vocab_size", "expected a smaller number, got 10"),
    ({"initializer_range": "wide"}, ".initializer_range", "expected float, got str"),
    ({"head_dim": -8}, ".head_dim", "expected a number of at least 0, got -8"),
    ({"rope_parameters": {"rope_type": "bent", "rope_theta": 1.0}}, ".rope_parameters", "KeyError: 'bent'"),
]


def line_of(file, key, where):
    lines = file.read_text().splitlines()
    start = lines.index(f"{where}:")
    wanted = f"    {key[1:]}:" if key else "  config:"
    return next(i for i, line in enumerate(lines[start:], start + 1) if line.startswith(wanted))


@pytest.mark.parametrize("where", ["model", "teacher"])
@pytest.mark.parametrize(("changes", "key", "words"), WRONG, ids=str)
def test_an_error_in_a_recipes_config_names_the_field(recipe, where, changes, key, words):
    file = recipe(**{where: changes})
    place = f"stage 'a': teacher(: |\\.)config{key}: " if where == "teacher" else f"model(: |\\.)config{key}: "
    with pytest.raises(RecipeError, match=rf"run\.yaml:{line_of(file, key, where)}:.*{place}.*{words}"):
        prepare(recipes.load(file)).plan()


def test_a_model_type_that_is_no_text_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"run\.yaml:\d+:\d+: model\.config: model_type: expected text such as llama"):
        recipes.load(recipe(model={"model_type": {"a": 1}}))


def test_the_command_prints_the_error_and_exits_with_2(recipe, capsys):
    assert main(["plan", str(recipe(model={"hidden_act": "nope"}))]) == 2
    said = capsys.readouterr().err
    assert "model.config.hidden_act: no model can be built with 'nope'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_act": "nope"}, r"^overrides\.hidden_act: no model can be built with 'nope'"),
        ({"num_hidden_layers": "2"}, r"^overrides\.num_hidden_layers: .*expected int, got str"),
        ({"num_hidden_layers": -2}, r"^overrides\.num_hidden_layers: expected a number of at least 0"),
        ({"num_attention_heads": 0}, r"^overrides\.num_attention_heads: .*ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("work", ["skeleton", "load"])
def test_an_error_in_overrides_names_the_field(overrides, message, work, tmp_path):
    ModelSource(config=MODEL).load().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        getattr(ModelSource(str(tmp_path), overrides=overrides), work)()


def test_values_that_some_models_use_are_accepted():
    ModelSource(config={**MODEL, "pad_token_id": -1}).skeleton()
    ModelSource(config={**MODEL, "num_hidden_layers": 0}).skeleton()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(recipe, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "tokens")
    file = recipe(model={"vocab_size": 10}, teacher={"vocab_size": 10})
    file.write_text("tokenizer: tokens\n" + file.read_text())
    line = line_of(file, ".vocab_size", "model")
    with pytest.raises(RecipeError, match=rf"run\.yaml:{line}:5: stage 'a': model: its token embedding has 10 rows"):
        prepare(recipes.load(file)).plan()
