"""Train a Llama that tells stories in ternary weights: plainly, and by BitDistill's recipe, at equal updates.

    python examples/ternary_stories.py --model LLAMA --data STORIES --out out [--runs plain bitdistill] [--rates 3e-3]

LLAMA is a model folder; the model is also the teacher. STORIES is a text file, gzipped or not. Its last twentieth is
for choices between runs (dev), the twentieth before it for the final measurement (``--test``). You may interrupt the
script and start it again: it skips finished runs and resumes the one in progress.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

from _arguments import command_line, training_arguments
from hf_stages import Recipe, Stage, StagedTrainer, Ternarize, bitdistill

TERNARY = Ternarize(method="absmean", per="tensor", embeddings=False)  # with 8-bit activations, as in the recipe
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
    """Cut the text into rows of ``length`` tokens: for training, for choices (dev) and for the final test."""
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


def train(out: Path, options: argparse.Namespace, rate: float, seed: int, recipe: Recipe, data, tokenizer) -> None:
    args = training_arguments(
        out, per_device_train_batch_size=options.batch, learning_rate=rate, warmup_steps=0.1, seed=seed, use_cpu=False,
        save_strategy="steps", save_steps=100, save_total_limit=1, logging_steps=25,
    )  # fmt: skip
    trainer = StagedTrainer(
        LOAD(options.model),
        args,
        recipe=recipe,
        teacher=LOAD(options.model) if recipe.stages[-1].name == "distil" else None,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=True)


def parse(words=None) -> argparse.Namespace:
    parser = command_line(__doc__, required=("--model", "--data", "--out"))
    parser.add_argument("--runs", nargs="*", default=["tuned", "plain", "bitdistill"], choices=list(recipes_of(2)))
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="learning rates, for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, value in {"--updates": 300, "--batch": 4, "--length": 256}.items():
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--test", action="store_true", help="measure the test text too")
    return parser.parse_args(words)


def main(words=None) -> None:
    # 1. Read the text, and measure the model as it is.
    options = parse(words)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data, parts = read(options.data, tokenizer, options.length), ["dev", "test"][: 1 + options.test]
    print(f"untouched { ({part: perplexity(LOAD(options.model), data[part]) for part in parts}) }", flush=True)

    # 2. Train every run at every rate with every seed, unless its result is there.
    for name, rate, seed in itertools.product(options.runs, options.rates, options.seeds):
        result = options.out / f"{name}-{rate:g}-{seed}" / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        if not found:
            train(result.parent, options, rate, seed, recipes_of(options.updates)[name], data["train"], tokenizer)

        # 3. Measure it. A stock Llama would have the ternary weights, but would not round activations to 8 bits.
        last = max(result.parent.glob("[0-9][0-9]-*"))
        model = StagedTrainer.from_stage(last, training_arguments(options.out, use_cpu=False)).model
        found |= {part: perplexity(model, data[part]) for part in parts if part not in found}
        result.write_text(json.dumps(found))
        print(f"{name:16} rate {rate:<6g} seed {seed}  {found}", flush=True)


if __name__ == "__main__":
    main()
