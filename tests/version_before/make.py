"""Writes the folders beside it: ``OMP_NUM_THREADS=1 python -m tests.version_before.make``.

To be run by the version that is to be remembered, not by one that is to be tested against it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import yaml
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

import hf_stages
from hf_stages import Stage, StagedTrainer, Teacher
from hf_stages.core.fingerprint import fingerprint
from hf_stages.models.stage_models import load_stage
from hf_stages.packing import pack
from hf_stages.recipes import dump, load, loads, part_to_dict
from hf_stages.training.from_recipe import build_trainer, prepare
from hf_stages.transforms import AddLora, InsertSubLN, Ternarize
from tests.version_before import public_parts, runs

WORDS = ["the", "a", "cat", "dog", "bird", "sees", "likes", "hears", "finds", "small", "old", "red", "and", "then"]
SIGNS = ["def", "return", "if", "else", "x", "y", "z", "(", ")", ":", "=", "+", "0", "1", "in"]
VOCABULARY = ["<pad>", "<unk>", "<end>", "<mask>", *WORDS, *SIGNS]
LLAMA = """
  auto_class: AutoModelForCausalLM
  config:
    model_type: llama
    vocab_size: 40
    hidden_size: 8
    intermediate_size: 16
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 1
    max_position_embeddings: 32
    tie_word_embeddings: false
    pad_token_id: 0
    bos_token_id: 2
    eos_token_id: 2
    initializer_range: 0.3"""
RECIPE = f"""# A run with much in it that is recorded by name or by fingerprint.
model:{LLAMA}
tokenizer: tokenizer
args:
  output_dir: cut
  learning_rate: 1e-2
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 2
  weight_decay: 0.05
  adam_beta2: 0.95
  adam_epsilon: 1e-4
  max_grad_norm: 0.9
  warmup_steps: 2
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 2
  save_strategy: "no"
  seed: 7
  report_to: none
  use_cpu: true
  disable_tqdm: true
sources:
  prose: {{path: prose, text: text, max_length: 10}}
  code:
    path: code
    text: text
    max_length: 10
    augment: {{use: Augment, method: embeddings, vectors: vectors.txt, n: 2, k: 3, stopwords: [the], cache: augmented}}
  prose-eval: {{path: json, data_files: prose-eval.jsonl, text: text, max_length: 10}}
  code-eval: {{path: json, data_files: code-eval.jsonl, text: text, max_length: 10}}
train_dataset: prose
eval_dataset: {{prose: prose-eval, code: code-eval}}
data_collator: {{use: DataCollatorForLanguageModeling, mlm: false}}
stages:
  - name: full
    until: 6 steps
    data_collator: {{use: Packed, length: "Linear(12, 20)"}}
    loss: {{use: "hf_stages.losses.task_loss:TaskLoss"}}
    schedule: {{use: Fresh, warmup: 2 steps, shape: "Cosine(1, 0.3)"}}
    gates:
      - {{use: Expect, metric: eval_prose_loss, high: 9.0}}
  - name: distil
    until: 13 steps
    train_dataset:
      use: Mixture
      weights: {{prose: "Linear(1, 0)", code: {{use: Step, points: [[0, 0.01], [0.5, 4]]}}}}
      sources:
        code: {{use: ByDifficulty, source: code, by: {{use: ModelLoss, model: cut/01-full}}, window: 6}}
    data_collator:
      use: BySource
      collators:
        prose: {{use: Lengths, length: 8, collator: {{use: DataCollatorForLanguageModeling, mlm: false}}}}
        code: {{use: DataCollatorForLanguageModeling, mlm: false}}
      collator: {{use: DataCollatorForLanguageModeling, mlm: false}}
    transforms:
      - {{use: ReduceLayers, keep: [2]}}
    teacher: "stage:full"
    loss:
      prose: {{use: Balanced, every: 2, loss: [{{use: LogitKL, temperature: 2}}, {{use: HiddenMSE, weight: 0.5}}]}}
      code: [TaskLoss, {{use: LogitKL, weight: "Linear(1, 0.2)"}}]
    schedule: {{use: Rewarm, to: 2e-2, warmup: 2 steps, then: "Linear(1, 0.5)"}}
    args: {{weight_decay: 0.0}}
    gates:
      - {{use: Forgetting, budget: 0.5 %, of: [code], action: rollback, patience: 2, factor: 0.8}}
  - name: ternary
    until: 8 steps
    train_dataset: code
    transforms:
      - {{use: Ternarize, exclude: lm_head, strength: "Linear(0.5, 1)"}}
    schedule: Resume
    gates:
      - {{use: Forgetting, budget: 40 %, of: [prose], action: rollback, factor: 0.25}}
      - {{use: "hf_stages.gates.plateau:Plateau", metric: eval_code_loss, patience: 2, min_delta: 9.0}}
"""
CACHED = f"""# A student of a teacher that was asked before.
model:{LLAMA}
tokenizer: tokenizer
args: {{output_dir: out, learning_rate: 5e-3, adam_epsilon: 1e-4, warmup_steps: 1,
  per_device_train_batch_size: 4, logging_steps: 1,
  seed: 11, report_to: none, use_cpu: true, disable_tqdm: true, save_strategy: "no"}}
sources:
  prose: {{path: json, data_files: prose.jsonl, text: text, max_length: 10}}
train_dataset: prose
data_collator: {{use: DataCollatorForLanguageModeling, mlm: false}}
teacher: TEACHER
stages:
  - name: student
    until: 6 steps
    loss: [{{use: LogitKL, temperature: 1.5}}, {{use: HiddenMSE, layers: {{2: 2}}, weight: 0.3}}]
"""


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**yaml.safe_load(LLAMA)["config"]))


def texts(words: list[str], count: int, start: int = 0) -> list[str]:
    """Sentences of 4 to 10 words; which, only their numbers say."""
    numbers = range(start, start + count)
    return [" ".join(words[(i * 5 + j * (2 + i % 3)) % len(words)] for j in range(4 + i % 7)) for i in numbers]


def write_tokenizer(folder: Path) -> None:
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=32, **special).save_pretrained(folder)


def write_jsonl(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def make_yaml(folder: Path, expected: dict[str, Any]) -> None:
    """Three stages from a recipe, cut inside the second; the same uncut; its last stage packed."""
    write_tokenizer(folder / "tokenizer")
    for name, words in (("prose", WORDS), ("code", SIGNS)):
        Dataset.from_dict({"text": texts(words, 18)}).save_to_disk(folder / name)
        write_jsonl(folder / f"{name}-eval.jsonl", texts(words, 6, 50))
    vectors = [f"{word} {i % 4} {i % 3 - 1} {(i * 7) % 5 / 5}\n" for i, word in enumerate([*WORDS, *SIGNS])]
    (folder / "vectors.txt").write_text("".join(vectors))
    (folder / "recipe.yaml").write_text(RECIPE)
    expected["foreign"] = runs.foreign(folder)
    whole = make_run("yaml", folder, expected)
    last = sorted(whole.glob("[0-9]*"))[-1]
    shutil.copytree(last, folder.parent / "stage")
    (folder.parent / f"yaml-{last.name}.safetensors").unlink()  # it is in there
    expected["dump"] = dump(loads(RECIPE))
    pack(last, folder.parent / "packed")
    expected["packed"] = runs.logits_of(AutoModelForCausalLM.from_pretrained(folder.parent / "packed")).tolist()
    expected["stage"] = runs.logits_of(load_stage(last)[0]).tolist()
    expected["stage by AutoModel"] = runs.logits_of(AutoModelForCausalLM.from_pretrained(last)).tolist()


def make_python(folder: Path, expected: dict[str, Any]) -> None:
    folder.mkdir()
    Teacher(runs.bert(3)).cache(runs.rows(20), folder / "cache", collator=runs.collate)
    make_run("python", folder, expected)


def make_run(kind: str, folder: Path, expected: dict[str, Any]) -> Path:
    """Cut here, and whole in another folder, which is returned."""
    apart = Path(tempfile.mkdtemp())
    with runs.inside(Path(shutil.copytree(folder, apart / "whole"))):
        trainer, watch = runs.trained(kind)
    whole = apart / "whole" / runs.OUT
    expected[kind] = {"updates": watch.updates, **runs.result_of(trainer, whole)}
    keep_weights(kind, folder.parent, whole, skip=1)  # the first stage's are in the run that was cut
    with runs.inside(Path(shutil.copytree(folder, apart / "cut"))):
        _, watch = runs.trained(kind, stop=runs.CUT_AT[kind])
    expected[kind]["cut"] = len(watch.updates)
    shutil.copytree(apart / "cut" / runs.OUT, folder / runs.OUT)
    if (apart / "cut" / "augmented").is_dir():
        shutil.copytree(
            apart / "cut" / "augmented", folder / "augmented", ignore=shutil.ignore_patterns("*.lock", "cache-*")
        )
    return whole


def keep_weights(kind: str, to: Path, whole: Path, skip: int = 0) -> None:
    """For machines that come to other last bits."""
    for name, tensors in list(runs.weights_of(whole).items())[skip:]:
        save_file(tensors, to / f"{kind}-{name}.safetensors")


def make_cached(folder: Path, expected: dict[str, Any]) -> None:
    """A cache, and a recipe that reads it; the run itself is made in another folder."""
    write_tokenizer(folder / "tokenizer")
    write_jsonl(folder / "prose.jsonl", texts(WORDS, 12, 20))
    apart = Path(shutil.copytree(folder, Path(tempfile.mkdtemp()) / "run"))
    llama(1).save_pretrained(apart / "teacher")
    teacher = "{use: Teacher, model: teacher, auto_class: AutoModelForCausalLM}"
    with runs.inside(apart):  # a cache notes where its teacher was
        prepare(loads(CACHED.replace("TEACHER", teacher))).cache_teacher("cache", k=6, hidden=[2])
    shutil.copytree(apart / "cache", folder / "cache")
    (folder / "recipe.yaml").write_text(CACHED.replace("TEACHER", "{use: CachedTeacher, folder: cache}"))
    shutil.copy(folder / "recipe.yaml", apart / "recipe.yaml")
    trainer = build_trainer(load(apart / "recipe.yaml"), output_dir=str(apart / "out"))
    trainer.train()
    expected["cached"] = runs.result_of(trainer, apart / "out")
    keep_weights("cached", folder.parent, apart / "out")


def make_lora(folder: Path, expected: dict[str, Any]) -> None:
    """Ternary weights and norms that stock transformers has no architecture for, then adapters on top."""
    tokens = {"input_ids": [[4 + (i * 3 + j) % 28 for j in range(6)] for i in range(8)]}
    data = Dataset.from_dict({**tokens, "labels": tokens["input_ids"]})
    args = TrainingArguments(
        "lora-run", learning_rate=1e-2, per_device_train_batch_size=4, warmup_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    stages = [
        Stage("ternary", "2 steps", transforms=[InsertSubLN(), Ternarize(exclude="lm_head")]),
        Stage("lora", "3 steps", transforms=[AddLora(2, target_modules=["q_proj", "v_proj"], dropout=0.1)]),
    ]
    with tempfile.TemporaryDirectory() as apart, runs.inside(Path(apart)):
        trainer = StagedTrainer(llama(2), args, stages=stages, train_dataset=data)
        trainer.train()
        shutil.copytree(Path(args.output_dir) / "02-lora", folder)
    expected["lora"] = runs.logits_of(trainer.model).tolist()
    expected["lora by AutoModel"] = runs.logits_of(AutoModelForCausalLM.from_pretrained(folder)).tolist()


def main(to: Path) -> None:
    torch.set_num_threads(1)
    for path in to.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            shutil.rmtree(path)
        elif path.suffix in (".safetensors", ".json"):
            path.unlink()
    expected: dict[str, Any] = {"version": hf_stages.__version__, "machine": runs.machine()}
    make_yaml(to / "yaml", expected)
    make_python(to / "python", expected)
    make_cached(to / "cached", expected)
    make_lora(to / "lora", expected)
    expected["parts"] = {
        key: [{"fingerprint": fingerprint(part), "written": part_to_dict(part, key)} for part in parts]
        for key, parts in public_parts.parts().items()
    }
    (to / "expected.json").write_text(json.dumps(expected, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else runs.HERE)
