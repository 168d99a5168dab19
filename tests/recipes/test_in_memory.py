"""What exists in memory alone is recorded by a fingerprint and not read back."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from transformers import DataCollatorWithPadding, LlamaConfig, LlamaForCausalLM, default_data_collator

from hf_stages import Stage
from hf_stages.core.fingerprint import fingerprint
from hf_stages.data.collators.collator import Collator
from hf_stages.recipes import (
    RecipeError,
    stage_from_dict,
    to_dict,
)
from hf_stages.schedules import Resume


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"x": torch.tensor(self.rows[index])}


def tiny():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    )


def test_what_exists_in_memory_is_recorded_and_refused_back():
    data = datasets.Dataset.from_dict({"a": [1]})
    stage = Stage(
        "a", "1 steps", train_dataset=data, eval_dataset=Rows([1, 2]), teacher=tiny(), compute_metrics=lambda p: {}
    )
    plain = to_dict(stage)
    assert plain["train_dataset"] == {"in_memory": "dataset", "fingerprint": data._fingerprint}
    assert plain["eval_dataset"]["in_memory"] == "dataset"
    assert plain["teacher"]["in_memory"] == "model"
    assert plain["compute_metrics"]["in_memory"] == "function"
    assert json.loads(json.dumps(plain)) == plain
    for key in ("train_dataset", "eval_dataset", "teacher", "compute_metrics"):
        with pytest.raises(RecipeError, match=f"{key}: a .* that existed only in memory"):
            stage_from_dict({"name": "a", "until": "1 steps", key: plain[key]})


def test_fingerprints_tell_apart():
    different = [
        Rows([1, 2]),
        Rows([1, 3]),
        Rows([1]),
        tiny(),
        len,
        tiny,
        [1],
        partial(tiny, 1),
        partial(tiny, 2),
        Resume(),
    ]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint(tiny()) == fingerprint(tiny())
    assert fingerprint(object()) == fingerprint(object())
    assert fingerprint(tiny) == "tests.recipes.test_in_memory.tiny"


LIGHT = """
from functools import partial
import datasets
from hf_stages.core.curves import Linear
from hf_stages.core.fingerprint import fingerprint
from hf_stages.gates import Budget

class Lazy:
    rows = [1, 2]
    def __len__(self): return 2
    def __getitem__(self, i): return {"b": self.rows[i], "a": {"x", "y", "z"}, "o": object()}

data = datasets.Dataset.from_dict({"a": [1]})
values = [Lazy(), data, [data], Budget("1 hour"), Linear(1, 0), {"b", "a", "c"},
        partial(print, Lazy()), object(), print]
found = [fingerprint(value) for value in values]
"""


def test_fingerprints_are_the_same_in_another_process():
    here: dict = {"__name__": "__main__"}
    exec(LIGHT, here)
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", LIGHT + "print(found)"], capture_output=True, text=True, env=env, check=True
    )
    assert run.stdout.strip() == str(here["found"])


def test_collators():
    assert part_of("data_collator", "default_data_collator") is default_data_collator
    assert (
        to_dict(Stage("a", "1 steps", data_collator=default_data_collator))["data_collator"] == "default_data_collator"
    )
    held = DataCollatorWithPadding(tokenizer=Rows([]), max_length=9)
    plain = to_dict(Stage("a", "1 steps", data_collator=held))["data_collator"]
    assert (plain["use"], plain["max_length"], plain["tokenizer"]["in_memory"]) == (
        "DataCollatorWithPadding",
        9,
        "dataset",
    )
    with pytest.raises(RecipeError, match=r"data_collator.tokenizer: a dataset that existed only in memory"):
        part_of("data_collator", plain)
    with pytest.raises(ValueError, match="DataCollatorWithPadding needs a tokenizer"):
        Collator("DataCollatorWithPadding").build()
    assert Collator("DataCollatorWithPadding", {"max_length": 9}).build(tokenizer="t").max_length == 9


def part_of(key, plain):
    return getattr(stage_from_dict({"name": "a", "until": "1 steps", key: plain}), key)
