"""Where a name is not known, the nearest known ones are shown, whatever is cut."""

from __future__ import annotations

import pytest

from hf_stages import Stage
from hf_stages.core.did_you_mean import did_you_mean, list_names, sort_by_likeness
from hf_stages.models.model_source import ModelSource
from hf_stages.transforms import AddLora, Freeze, Ternarize
from tests.support import tiny


def test_short_lists_stay_whole_and_in_order():
    assert did_you_mean("x", ["b", "a"]) == "expected one of b, a"
    assert list_names("x", []) == "nothing"


def test_the_beginning_of_a_name_is_enough_to_mean_it():
    assert did_you_mean("acc", ["f1", "accuracy"]) == "did you mean 'accuracy'?"
    assert did_you_mean("acc", ["accuracy", "according_to"]) == "expected one of accuracy, according_to"


def test_long_lists_are_cut_to_the_most_similar_names():
    names = [f"name_{letter}" for letter in "abcdefghijklmnop"]
    shown = list_names("zz_p", [*names, "zz"], most=3)
    assert shown.startswith("zz, name_p, ")
    assert shown.endswith(" and 14 more")


def test_names_that_differ_only_in_a_number_are_shown_once():
    names = [f"model.layers.{i}.{part}.weight" for i in range(4) for part in ("mlp", "self_attn.q_proj")]
    assert sort_by_likeness("query", names) == ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.weight"]


@pytest.mark.parametrize(
    ("build", "wanted", "first"),
    [
        (tiny.llama, "query", "q_proj"),
        (tiny.llama, "value", "v_proj"),
        (tiny.bert, "q_proj", "query"),
        (tiny.bert, "v_proj", "value"),
        (tiny.t5, "query", "q"),
    ],
)
def test_unknown_lora_targets_show_the_most_similar_modules(build, wanted, first):
    with pytest.raises(ValueError, match=f"target_modules: .* got '{wanted}', which matches none") as caught:
        AddLora(target_modules=[wanted])(build())
    assert str(caught.value).partition("such as ")[2].split(", ")[0] == first


@pytest.mark.parametrize(
    ("transform", "first"),
    [
        (Freeze("query"), "model.layers.0.self_attn.q_proj.weight"),
        (Ternarize("query"), "model.layers.0.self_attn.q_proj"),
    ],
)
def test_unknown_patterns_show_the_most_similar_names(transform, first):
    with pytest.raises(ValueError, match="matches nothing") as caught:
        transform(tiny.llama())
    assert str(caught.value).partition("such as ")[2].split(", ")[0] == first


def test_long_lists_of_transformers_are_cut():
    with pytest.raises(ValueError, match=r"did you mean 'AutoModelForCausalLM'\?"):
        ModelSource(path="x", auto_class="AutoModelForCausaLM").load()
    with pytest.raises(ValueError, match=r"unknown model_type .lamma.; did you mean .llama."):
        ModelSource(config={"model_type": "lamma"}).skeleton()
    with pytest.raises(ValueError, match=r"unknown curve 'Slope' in .*expected one of"):
        Stage("a", "1 steps", transforms=[Ternarize(strength="Slope(0, 1)")])
