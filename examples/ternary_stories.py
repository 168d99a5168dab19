"""A Llama that tells stories, in ternary weights: plain training against BitDistill's recipe, at equal updates.

    python examples/ternary_stories.py --model LLAMA --data STORIES --out out [--runs plain bitdistill] [--rates 3e-3]

LLAMA: a model folder, which also teaches; STORIES: a text file, .gz or not, whose last twentieth is for choices (dev), the one
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
from hf_stages.transforms import Ternarize

TERNARY = Ternarize(method="absmean", per="tensor", embeddings=False)  # and 8-bit activations: as the recipe has it
LOAD = AutoModelForCausalLM.from_pretrained


def recipes_of(updates: int) -> dict[str, Recipe]:
    whole, halves = f"{updates} steps", partial(bitdistill, f"{updates // 2} steps", pretrain=f"{updates // 2} steps")
    return {
        "tuned": Recipe([Stage("tuned", whole)]),
        "plain": Recipe([Stage("ternary", whole, transforms=TERNARY)]),
        "bitdistill": halves(),
        "no-subln": halves(sub_norm=False),
        "no-relation": halves(relation=0),
        "no-logits": halves(logits=0),
        "per-row": halves(per="row"),
        "logits-alone": bitdistill(whole, pretrain=None, sub_norm=False, relation=0),
    }


def read(path: Path, tokenizer, length: int) -> dict[str, Dataset]:
    lines = (gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()).splitlines()
    part, found = len(lines) // 20, {}
    for name, text in {"train": lines[: -2 * part], "test": lines[-2 * part : -part], "dev": lines[-part:]}.items():
        ids = tokenizer("\n".join(text), verbose=False)["input_ids"]
        rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
        found[name] = Dataset.from_dict({"input_ids": rows, "labels": rows})
    return found


def perplexity(model, data: Dataset) -> float:
    model, rows = model.eval(), torch.tensor(data["input_ids"][:])
    with torch.no_grad():
        total = sum(model(input_ids=some, labels=some).loss.item() * len(some) for some in rows.split(16))
    return math.exp(total / len(rows))


def train(out: Path, a: argparse.Namespace, recipe: Recipe, rate: float, seed: int, **given) -> None:
    args = TrainingArguments(
        str(out), per_device_train_batch_size=a.batch, learning_rate=rate, warmup_steps=0.1, optim="adamw_torch_fused",
        save_steps=100, save_total_limit=1, logging_steps=25, seed=seed, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    if recipe.stages[-1].name == "distil":
        given["teacher"] = LOAD(a.model)
    trainer = StagedTrainer(LOAD(a.model), args, recipe=recipe, data_collator=default_data_collator, **given)
    trainer.train(resume_from_checkpoint=True)


def main(words=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=["tuned", "plain", "bitdistill"], choices=list(recipes_of(2)))
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="learning rates, for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, value in {"--updates": 300, "--batch": 4, "--length": 256}.items():
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--test", action="store_true", help="measure the test text too")
    a = parser.parse_args(words)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    data, parts = read(a.data, tokenizer, a.length), ["dev", "test"][: 1 + a.test]
    print(f"untouched { ({part: perplexity(LOAD(a.model), data[part]) for part in parts}) }", flush=True)
    for name, rate, seed in itertools.product(a.runs, a.rates, a.seeds):
        result = a.out / f"{name}-{rate:g}-{seed}" / "result.json"
        found, given = {}, {"train_dataset": data["train"], "processing_class": tokenizer}
        if result.exists():
            found = json.loads(result.read_text())
        else:
            train(result.parent, a, recipes_of(a.updates)[name], rate, seed, **given)
        # Not as a stock Llama, which has the ternary weights and knows nothing of 8-bit activations.
        last = max(result.parent.glob("[0-9][0-9]-*"))
        model = StagedTrainer.from_stage(last, TrainingArguments(str(a.out), report_to="none")).model
        found |= {part: perplexity(model, data[part]) for part in parts if part not in found}
        result.write_text(json.dumps(found))
        print(f"{name:16} rate {rate:<6g} seed {seed}  {found}", flush=True)


if __name__ == "__main__":
    main()
