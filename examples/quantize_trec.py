"""One bit and two bits on TREC questions: the multi-stage and the single-stage path at equal steps, with their ablations.

    python examples/quantize_trec.py --base ENCODER --data TREC --out out [--runs multi single] [--seeds 0 1 2]

ENCODER: a model folder; TREC: train.txt and test.txt. A teacher is tuned for each seed, then each run's student begins as
that teacher. The 2-bit row is the multi-stage run half-way. Cut it anywhere and start it again: what is done is skipped,
what is in progress goes on.
"""

import argparse
import json
from pathlib import Path

from datasets import load_from_disk
from distil_trec import LABELS, read
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_stages import Recipe, Stage, StagedTrainer
from hf_stages.losses import TaskLoss
from hf_stages.metrics import Metrics
from hf_stages.recipes import multi_stage, single_stage
from hf_stages.transforms import Binarize

GENERAL = 600
"""Updates of general distillation."""


def recipes_of(steps: int, rate: float, corpus=None, base=None) -> dict[str, Recipe]:
    whole = f"{steps} steps"
    # Features at twice the rate of logits; after the split at half, because two halves move a weight twice as far.
    multi = {"learning_rate": [rate, rate / 2, rate / 2, rate / 4]}
    single = {"learning_rate": rate, "logits": 10.0}
    found = {
        "multi": multi_stage(whole, **multi),
        "single": single_stage(whole, **single),
        "no-teacher": Recipe([Stage("binary", whole, transforms=Binarize(), args={"learning_rate": rate / 4})]),
        "3-layers": single_stage(whole, reduce=[2, 4, 6], **single),
        "per-tensor": single_stage(whole, per="tensor", **single),
        "augmented": single_stage(whole, **single),
    }
    if corpus is not None:
        general = {"general": f"{GENERAL} steps", "corpus": corpus, "general_teacher": base, "set_task": LABELS}
        found["half-width"] = multi_stage(whole, width=0.5, **general, **multi)
    return found


def train(out: Path, model, recipe: Recipe, data, tokenizer, seed: int, teacher=None) -> StagedTrainer:
    args = TrainingArguments(
        str(out), per_device_train_batch_size=32, per_device_eval_batch_size=64, learning_rate=5e-5, warmup_steps=0.1,
        weight_decay=0.01, optim="adamw_torch_fused", train_sampling_strategy="group_by_length", save_steps=150,
        save_total_limit=1, logging_steps=50, seed=seed, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    given = {"train_dataset": data["train"], "eval_dataset": data["dev"], "compute_metrics": Metrics("accuracy")}
    if teacher is not None:
        given["teacher"] = teacher
    trainer = StagedTrainer(model, args, stages=recipe.stages, processing_class=tokenizer, **given)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def accuracy(trainer: StagedTrainer, data) -> dict[str, float]:
    return {part: trainer.evaluate(data[part])["eval_accuracy"] for part in ("dev", "test")}


def main(words=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--base", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=["multi", "single"], choices=[*recipes_of(4, 1e-4), "half-width"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6, help="of each student, whatever its stages")
    parser.add_argument("--tuning", type=int, default=4, help="epochs of each teacher")
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate of the students")
    parser.add_argument("--corpus", type=Path, help="a `datasets` folder of tokenized text, for the half-width run")
    parser.add_argument("--augmented", type=Path, help="a `datasets` folder to train the augmented run on")
    a = parser.parse_args(words)
    tokenizer = AutoTokenizer.from_pretrained(a.base)
    split = read(a.data / "train.txt", tokenizer).train_test_split(0.1, seed=0)
    data = {"train": split["train"], "dev": split["test"], "test": read(a.data / "test.txt", tokenizer)}
    fine = AutoModelForSequenceClassification.from_pretrained
    named = dict(enumerate(LABELS))
    bare = AutoModel.from_pretrained
    general = {"corpus": load_from_disk(str(a.corpus)), "base": bare(a.base)} if a.corpus else {}
    recipes = recipes_of(a.epochs * -(-len(data["train"]) // 32), a.rate, **general)
    for seed in a.seeds:
        tuned = a.out / f"teacher-{seed}" / "01-tuned"
        plain = Recipe([Stage("tuned", f"{a.tuning} epochs", loss=TaskLoss())])
        for name in ("teacher", *a.runs):
            result = a.out / f"{name}-{seed}" / "result.json"
            if not result.exists():
                own = dict(data)
                if name == "augmented":
                    own["train"] = load_from_disk(str(a.augmented))
                if name == "teacher":
                    trainer = train(
                        result.parent, fine(a.base, num_labels=6, id2label=named), plain, own, tokenizer, seed
                    )
                else:
                    teacher = None if name == "no-teacher" else fine(tuned)
                    start = bare(a.base) if name == "half-width" else fine(tuned)
                    trainer = train(result.parent, start, recipes[name], own, tokenizer, seed, teacher)
                found = accuracy(trainer, data)
                if name in ("multi", "half-width"):
                    half = StagedTrainer.from_stage(next(result.parent.glob("0?-ternary-logits")), trainer.args)
                    half.compute_metrics = Metrics("accuracy")
                    found["2-bit"] = accuracy(half, data)
                result.write_text(json.dumps(found))
            print(f"{name:12} seed {seed}  {result.read_text()}", flush=True)


if __name__ == "__main__":
    main()
