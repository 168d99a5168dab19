"""Parts are found by their files; parts from outside need trust."""

import json
from dataclasses import dataclass, field

import pytest

import hf_stages
from hf_stages import Recipe, Stage
from hf_stages.core import registry
from hf_stages.losses import Loss, TaskLoss
from hf_stages.losses.base import Sum
from hf_stages.recipes import (
    RecipeError,
    dump,
    loads,
    part_from_dict,
    to_dict,
)


def test_adding_a_part_is_adding_a_file(monkeypatch, tmp_path):
    """The file's name is the class's; nothing else is imported."""
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "my_kl.py").write_text("class MyKL: pass\nclass Helper: pass\n")
    (tmp_path / "gates" / "broken.py").write_text("class Broken: pass\nraise RuntimeError('imported')\n")
    (tmp_path / "gates" / "_private.py").write_text("class Private: pass\n")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    monkeypatch.setattr(hf_stages.gates, "__path__", [*hf_stages.gates.__path__, str(tmp_path / "gates")])
    assert type(part_from_dict("MyKL", "gates")).__name__ == "MyKL"
    for name in ("Helper", "Private", "my_kl", "Mykl"):
        with pytest.raises(RecipeError, match="unknown part"):
            part_from_dict(name, "gates")
    with pytest.raises(RuntimeError, match="imported"):
        part_from_dict("Broken", "gates")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("AddLora", "add_lora"),
        ("LogitKL", "logit_kl"),
        ("DPO", "dpo"),
        ("HiddenMSE", "hidden_mse"),
        ("InsertSubLN", "insert_sub_ln"),
    ],
)
def test_acronyms(monkeypatch, tmp_path, name, file):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / f"{file}.py").write_text(f"class {name}: pass\n")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    assert registry.module_of(name, "losses") == f"hf_stages.losses.{file}"


# ---- custom parts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnLoss(Loss):
    layers: tuple[int, ...] = ()
    map: dict[int, int] = field(default_factory=dict)
    shape: list[int] | None = None
    weight: float = 1.0
    inner: Loss | None = None


def own_metric(prediction):
    return {}


def test_custom_parts_need_trust_and_then_read_back():
    loss = 0.5 * OwnLoss((1, 2), {0: 3}, [1], 2.0, Sum((TaskLoss(), TaskLoss())))
    recipe = Recipe([Stage("a", "1 steps", loss=loss, compute_metrics=own_metric)])
    text = dump(recipe)
    assert "tests.recipes.test_custom_parts:OwnLoss" in text
    assert json.loads(json.dumps(to_dict(recipe))) == to_dict(recipe)
    assert loads(text, trust_remote_code=True) == recipe
    with pytest.raises(RecipeError, match="names code outside hf_stages"):
        loads(text)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("no_such_module_x:A", "cannot import 'no_such_module_x:A': .*; install it, or name its folder: PYTHONPATH="),
        ("json:nothing", "cannot import 'json:nothing'"),
        ("json:__name__", "expected a class or a function"),
        ("a/b:C", "expected 'package.module:Class'"),
        ("tests.recipes.test_custom_parts:own_metric", "is a function: it stands for itself"),
    ],
)
def test_custom_parts_that_are_none(use, message):
    with pytest.raises(RecipeError, match=message):
        part_from_dict({"use": use, "x": 1}, "gates", trust_remote_code=True)


@pytest.mark.parametrize(
    "use", ["hf_stages.core.registry:ast", "hf_stages.core.registry:find_class", "hf_stages.core.registry:Path"]
)
def test_our_own_modules_lead_to_our_own_classes_only(use):
    with pytest.raises(RecipeError, match="is no class of hf_stages"):
        part_from_dict({"use": use}, "gates")
