"""The example of language, code and tools: its calls are real, its metric is right, and it runs to its table."""

from __future__ import annotations

import importlib
import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import language_code_tools
from hf_stages.commands.cli import main as cli
from hf_stages.data.sample_text import docs
from stdlib_tools import (
    as_tokens,
    bpe_tokenizer,
    call_metrics,
    conversations,
    matches,
    read_call,
    signatures,
)

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return conversations(40)


@pytest.fixture(scope="module")
def tokenizer(rows):
    return bpe_tokenizer(json.dumps(rows).splitlines(), 400)


def called(message: dict) -> dict:
    return message["tool_calls"][0]["function"]


def test_calls_are_of_real_functions_and_wrong_ones_are_wrong(rows):
    assert rows == conversations(40)
    for row in conversations(300):
        right, wrong = called(row["chosen"][0]), called(row["rejected"][0])
        module, _, name = right["name"].rpartition(".")
        inspect.signature(getattr(importlib.import_module(module), name)).bind(**right["arguments"])
        assert row["prompt"][0]["content"].startswith(f"{name} with ")
        assert right["name"] in [tool["function"]["name"] for tool in row["tools"]]
        assert right["name"] == wrong["name"]
        assert right["arguments"] != wrong["arguments"]
    assert not signatures().keys() & signatures("eval").keys()
    assert len(signatures()) > 300


def test_only_the_call_has_labels(rows, tokenizer):
    for row, made in zip(rows, as_tokens(rows, tokenizer), strict=True):
        learned = [label for label in made["labels"] if label != -100]
        assert learned[-1] == tokenizer.eos_token_id
        assert json.loads(tokenizer.decode(learned[:-1])) == called(row["chosen"][0])
        asked = tokenizer.decode(made["input_ids"][: -len(learned)])
        assert asked.endswith(row["prompt"][0]["content"] + "\n=>\n")


def test_what_is_said_is_parsed_and_compared():
    right = '{"name": "a.f", "arguments": {"x": 1, "y": "red"}}'
    said = [
        '{"arguments": {"y": "red", "x": 1}, "name": "a.f"}',  # another order is the same call
        right.replace("red", "blue"),
        right.replace('"x": 1, ', ""),
        right.replace("a.f", "a.g"),
        right[:-1],
        '{"name": "a.f", "arguments": [1]}',
        "[]",
        "",
    ]
    assert matches(said, [right] * len(said)) == {"parsed": 4 / 8, "function": 3 / 8, "arguments": 1 / 8}
    assert read_call(right) == ("a.f", {"x": 1, "y": "red"})


class Parrot(torch.nn.Module):
    """Answers each prompt with what it was given for it."""

    device = torch.device("cpu")

    def __init__(self, answers: dict[str, list[int]], tokenizer) -> None:
        super().__init__()
        self.answers, self.tokenizer = answers, tokenizer

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample):
        prompts = [self.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        found = [self.answers[prompt][:max_new_tokens] for prompt in prompts]
        width = max(map(len, found))
        return torch.cat([input_ids, torch.tensor([ids + [0] * (width - len(ids)) for ids in found])], 1)


def test_the_metric_asks_with_the_prompt_alone(rows, tokenizer):
    made = as_tokens(rows, tokenizer)
    width = max(map(len, made["input_ids"]))
    # Padded as evaluation gathers batches of different widths, with -100 in inputs, too.
    ids = np.array([row + [0] * (width - len(row)) for row in made["input_ids"]])
    ids[::2, :] = np.where(ids[::2, :] == 0, -100, ids[::2, :])
    labels = np.array([row + [-100] * (width - len(row)) for row in made["labels"]])
    cut = [int((row != -100).argmax()) for row in labels]
    said = {
        tokenizer.decode(row[:n]): row[n:] for row, n in zip(made["input_ids"], cut, strict=True)
    }  # what is right, but for a quarter of them
    for prompt in list(said)[:10]:
        said[prompt] = said[prompt][:-3]
    found = call_metrics(Parrot(said, tokenizer), tokenizer, SimpleNamespace(inputs=ids, label_ids=labels))
    assert found == {"parsed": 0.75, "function": 0.75, "arguments": 0.75}
    text = SimpleNamespace(inputs=ids[:, :20], label_ids=ids[:, :20])
    assert call_metrics(None, tokenizer, text) == {}


def test_language_is_the_reference_and_docstrings_split_by_topic():
    train, held_out = (docs(60_000, split=split)["text"][:] for split in ("train", "eval"))
    assert not set(train) & set(held_out)
    assert 55_000 < sum(len(text.encode()) for text in train) <= 60_000


def test_four_stages_run_to_their_table(tmp_path, capsys):
    found = language_code_tools.main(tmp_path / "out", 4, 0, 0.25, True, True)
    bits = found["bits_per_byte"]["values"]
    assert list(bits) == ["start", "language", "code", "tools", "preferences"]
    for name in ("language", "code", "tools"):
        assert bits[name][name] < bits["start"][name]
    assert set(found["arguments"]["values"]["tools"]) == {"tools"}
    stage = json.loads((tmp_path / "out" / "03-tools" / "stage.json").read_text())
    assert {"parsed", "function", "arguments", "loss"} <= stage["domains"]["tools"].keys()
    assert stage["data"]["sources"]["tools"]["share"] == pytest.approx(0.75, abs=0.02)
    printed = capsys.readouterr().out
    assert f"hf-stages report {tmp_path / 'out'}" in printed
    assert cli(["report", str(tmp_path / "out")]) == 0
    assert "arguments" in capsys.readouterr().out
