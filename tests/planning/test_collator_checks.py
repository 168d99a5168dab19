"""Collators in a recipe: planned, refused and run from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_stages.recipes import loads
from hf_stages.training.from_recipe import prepare
from tests.support import tiny

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
RECIPE = """\
model:
  config: {{model_type: llama, vocab_size: 260, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
            num_attention_heads: 2}}
tokenizer: {folder}/tokenizer
args: {{output_dir: {folder}/out, per_device_train_batch_size: 2, report_to: none, use_cpu: true, disable_tqdm: true}}
sources:
  talk: {{path: json, data_files: {folder}/talk.jsonl}}
  text: {{path: json, data_files: {folder}/text.jsonl, text: text}}
train_dataset: text
stages:
- name: language
  until: 2 steps
  data_collator:
    {{use: Packed, length: "Linear(8, 64)", longer: split,
      collator: {{use: DataCollatorForLanguageModeling, mlm: false}}}}
- name: chat
  until: 2 steps
  train_dataset: talk
  data_collator: {{use: Packed, length: 128, collator: {{use: CompletionOnly}}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    talk = [
        {"messages": [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b" * n}]}
        for n in range(1, 9)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in range(1, 9)))
    tiny.tokenizer(TEMPLATE).save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_a_recipe_with_collators_of_stages_runs(folder: Path) -> None:
    prepared = prepare(loads(RECIPE.format(folder=folder)))
    prepared.plan()
    prepared.trainer().train()
    for name in ("01-language", "02-chat"):
        assert (folder / "out" / name / "config.json").is_file()
    recorded = json.loads((folder / "out" / "run.json").read_text())["recipe"]["stages"][1]
    assert recorded["data_collator"] == {"use": "Packed", "length": 128, "collator": {"use": "CompletionOnly"}}


def test_the_plan_refuses_a_tokenizer_without_a_template(folder: Path) -> None:
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=r"stage 'chat': data_collator: CompletionOnly: tokenizer: expected one with a chat"
    ):
        prepare(loads(RECIPE.format(folder=folder))).plan()
