"""The example of a ternary Llama: every run trains, is measured on texts of its own, and is not trained again."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import ternary_stories
from hf_stages.data.sample_text import byte_tokenizer
from hf_stages.layers import NormedLinear, TernaryLinear
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture
def given(tmp_path):
    """A tiny Llama and forty lines, each of one number."""
    config = type(tiny.llama_config()).from_dict({**tiny.llama_config().to_dict(), "vocab_size": 258})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with gzip.open(tmp_path / "text.gz", "wt") as file:
        file.write("\n".join(f"{number} was here, and {number} went." for number in range(40)))
    places = {"--model": "model", "--data": "text.gz", "--out": "out"}
    return [word for flag, name in places.items() for word in (flag, str(tmp_path / name))]


def test_runs_are_trained_once_and_measured_where_they_were_not_trained(given, tmp_path, capsys):
    runs = ["tuned", "plain", "bitdistill", "no-subln"]
    words = [*given, "--updates", "4", "--length", "16", "--batch", "2", "--seeds", "0", "--runs", *runs]
    ternary_stories.main(words)
    once = {name: json.loads((tmp_path / "out" / f"{name}-0.003-0" / "result.json").read_text()) for name in runs}
    assert all(set(found) == {"dev"} for found in once.values())
    trained = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("out/*/run.json"))]
    ternary_stories.main([*words, "--test"])
    assert trained == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("out/*/run.json"))]
    lines = [line for line in capsys.readouterr().out.splitlines() if "dev" in line]
    assert len(lines) == 10
    for name in runs:
        found = json.loads((tmp_path / "out" / f"{name}-0.003-0" / "result.json").read_text())
        assert found["dev"] == once[name]["dev"]
        assert set(found) == {"dev", "test"}
    kinds = {name: _kinds(max((tmp_path / "out" / f"{name}-0.003-0").glob("0*"))) for name in runs}
    assert kinds == {"tuned": (0, 0), "plain": (14, 0), "bitdistill": (14, 4), "no-subln": (14, 0)}


def test_no_text_is_in_two_parts(given, tmp_path):
    parts = ternary_stories.read(tmp_path / "text.gz", byte_tokenizer(), 16)
    texts = {
        name: byte_tokenizer().decode([i for row in data["input_ids"] for i in row]) for name, data in parts.items()
    }
    assert texts["train"].startswith("0 was here")
    assert "37" not in texts["train"]
    assert texts["test"].startswith("36 was")
    assert texts["dev"].startswith("38 was")


def test_perplexity_is_that_of_the_mean_token(given, tmp_path):
    data = ternary_stories.read(tmp_path / "text.gz", byte_tokenizer(), 16)["train"].select(range(19))
    rows = torch.tensor(data["input_ids"][:])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        logits = model(rows).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 258), rows[:, 1:].reshape(-1)).exp()
    assert ternary_stories.perplexity(model, data) == pytest.approx(expected.item(), rel=1e-5)


def _kinds(folder):
    """How many layers are ternary, and how many have a norm of their own."""
    from hf_stages import StagedTrainer

    modules = list(StagedTrainer.from_stage(folder, _args(folder)).model.modules())
    return tuple(sum(isinstance(m, kind) for m in modules) for kind in (TernaryLinear, NormedLinear))


def _args(folder):
    from transformers import TrainingArguments

    return TrainingArguments(str(folder.parent / "again"), report_to="none", use_cpu=True)
