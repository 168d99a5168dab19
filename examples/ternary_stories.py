"""A Llama that tells stories, in ternary weights: plain training against BitDistill's recipe, at equal updates.

    python examples/ternary_stories.py --model LLAMA --data STORIES --out out [--runs plain bitdistill] [--rates 3e-3]

LLAMA: a model folder, which also teaches; STORIES: a text file, .gz or not. Its last twentieth is for choices (dev), the one
before it for the end (--test). Cut it anywhere and start it again: what is done is skipped, what is in progress goes on.
"""

import argparse
import gzip
import itertools
import json
import math
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, default_data_collator

from hf_stages import Recipe, Stage, StagedTrainer
from hf_stages.recipes import bitdistill
from hf_stages.transforms import InsertSubLN, Ternarize

TERNARY = Ternarize(method="absmean", per="tensor", embeddings=False)  # and 8-bit activations: as the recipe has it


def recipes_of(updates: int) -> dict[str, Recipe]:
    whole, half = f"{updates} steps", f"{updates // 2} steps"
    halves = partial(bitdistill, half, pretrain=half)
    return {
        "tuned": Recipe([Stage("tuned", whole)]),
        "plain": Recipe([Stage("ternary", whole, transforms=TERNARY)]),
        "plain-subln": Recipe([Stage("ternary", whole, transforms=[InsertSubLN(), TERNARY])]),
        "bitdistill": halves(),
        "no-subln": halves(sub_norm=False),
        "no-relation": halves(relation=0),
        "no-logits": halves(logits=0),
        "no-pretraining": bitdistill(whole, pretrain=None),
        "per-row": halves(per="row"),
        "weights-only": halves(activations=None),
    }


def read(path: Path, tokenizer, length: int) -> dict[str, Dataset]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        lines = file.read().splitlines()
    part = len(lines) // 20
    texts = {"train": lines[: -2 * part], "test": lines[-2 * part : -part], "dev": lines[-part:]}
    ids = {name: tokenizer("\n".join(text), verbose=False)["input_ids"] for name, text in texts.items()}
    rows = {name: [i[at : at + length] for at in range(0, len(i) - length + 1, length)] for name, i in ids.items()}
    return {name: Dataset.from_dict({"input_ids": found, "labels": found}) for name, found in rows.items()}


def perplexity(folder: Path, data: Dataset) -> float:
    model, rows = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.tensor(data["input_ids"][:])
    with torch.no_grad():
        total = sum(model(input_ids=some, labels=some).loss.item() * len(some) for some in rows.split(16))
    return math.exp(total / len(rows))


def train(out: Path, a: argparse.Namespace, recipe: Recipe, rate: float, seed: int, data: Dataset, tokenizer) -> None:
    args = TrainingArguments(
        str(out), per_device_train_batch_size=a.batch, learning_rate=rate, warmup_steps=0.1, optim="adamw_torch_fused",
        save_steps=100, save_total_limit=1, logging_steps=25, seed=seed, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    given = {"teacher": AutoModelForCausalLM.from_pretrained(a.model)} if recipe.stages[-1].name == "distil" else {}
    model = AutoModelForCausalLM.from_pretrained(a.model)
    given.update(train_dataset=data, processing_class=tokenizer, data_collator=default_data_collator)
    trainer = StagedTrainer(model, args, recipe=recipe, **given)
    trainer.train(resume_from_checkpoint=True)


def main(words=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=["tuned", "plain", "bitdistill"], choices=list(recipes_of(2)))
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="learning rates, for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=300, help="of each run, whatever its stages")
    parser.add_argument("--batch", type=int, default=4, help="rows of an update")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--test", action="store_true", help="measure the test text too")
    a = parser.parse_args(words)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    data = read(a.data, tokenizer, a.length)
    parts = ["dev", "test"] if a.test else ["dev"]
    print(f"{'untouched':32} {({part: perplexity(a.model, data[part]) for part in parts})}", flush=True)
    for name, rate, seed in itertools.product(a.runs, a.rates, a.seeds):
        out = a.out / f"{name}-{rate:g}-{seed}"
        result = out / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        if not found:
            train(out, a, recipes_of(a.updates)[name], rate, seed, data["train"], tokenizer)
        last = max(out.glob("[0-9][0-9]-*"))
        found.update({part: perplexity(last, data[part]) for part in parts if part not in found})
        result.write_text(json.dumps(found))
        print(f"{name:16} rate {rate:<6g} seed {seed}  {found}", flush=True)


if __name__ == "__main__":
    main()
