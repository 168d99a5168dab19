"""One, two or three stages? A fine-tuned 6-layer encoder distilled to 3 layers on TREC questions, at equal steps.

    python examples/distil_trec.py --teacher TUNED --data TREC --out out [--base ENCODER --corpus TOKENIZED]

TUNED, ENCODER: model folders; TREC: train.txt and test.txt; TOKENIZED: a `datasets` folder of plain text, for general
distillation first. Cut it anywhere and start it again: finished runs are skipped, the one in progress goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, load_from_disk
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.evaluation.metrics import Metrics
from hf_stages.losses import AttentionMSE, HiddenMSE, LogitKL, TaskLoss
from hf_stages.transforms import ReduceLayers, SetTask

LABELS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
FEATURES, LOGITS = HiddenMSE() + AttentionMSE(), LogitKL()
RUNS = {  # stage -> loss; a run's updates are shared out evenly
    "plain": {"task": TaskLoss()},
    "one": {"all": FEATURES + LOGITS},
    "two": {"features": FEATURES, "logits": LOGITS},
    "three": {"features": FEATURES, "all": FEATURES + LOGITS, "logits": LOGITS},
}
REDUCE, HEAD = ReduceLayers(keep=[2, 4, 6]), SetTask("AutoModelForSequenceClassification", id2label=LABELS)


def questions(path: Path) -> Dataset:
    rows = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()]
    labels = [LABELS.index(label.split(":")[0]) for label, _ in rows]
    return Dataset.from_dict({"text": [question for _, question in rows], "labels": labels})


def tokenized(data: Dataset, tokenizer) -> Dataset:
    return Dataset.from_dict(
        {**tokenizer(list(data["text"]), truncation=True, max_length=64), "labels": data["labels"]}
    )


def read(folder: Path, tokenizer) -> dict[str, Dataset]:
    """A tenth of the training questions is held out."""
    split = questions(folder / "train.txt").train_test_split(0.1, seed=0)
    parts = {"train": split["train"], "dev": split["test"], "test": questions(folder / "test.txt")}
    return {name: tokenized(part, tokenizer) for name, part in parts.items()}


def train(out: Path, model, stages, data, tokenizer, teacher=None, seed=0, **changes) -> StagedTrainer:
    args = TrainingArguments(
        str(out), per_device_train_batch_size=32, per_device_eval_batch_size=64, warmup_steps=0.1, weight_decay=0.01,
        optim="adamw_torch_fused", train_sampling_strategy="group_by_length", save_steps=150, save_total_limit=1,
        logging_steps=50, seed=seed, report_to="none", disable_tqdm=True, **{"learning_rate": 1e-4, **changes},
    )  # fmt: skip
    dev = {"eval_dataset": data["dev"], "compute_metrics": Metrics("accuracy")} if "dev" in data else {}
    given = {"teacher": teacher, "train_dataset": data["train"], "processing_class": tokenizer, **dev}
    trainer = StagedTrainer(model, args, stages=stages, **given)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def staged(losses, updates: int, first) -> list[Stage]:
    stages = [Stage(name, f"{updates // len(losses)} steps", loss=loss) for name, loss in losses.items()]
    return [replace(stages[0], transforms=first), *stages[1:]]


def accuracy(trainer: StagedTrainer, data) -> dict[str, float]:
    return {part: trainer.evaluate(data[part])["eval_accuracy"] for part in ("dev", "test")}


def main(words=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--teacher", "--data", "--out", "--base", "--corpus"):
        parser.add_argument(name, type=Path, required=name in ("--teacher", "--data", "--out"))
    parser.add_argument("--epochs", type=int, default=3, help="of each run, whatever its stages")
    parser.add_argument("--general", type=int, default=600, help="updates of general distillation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    a = parser.parse_args(words)
    tokenizer = AutoTokenizer.from_pretrained(a.teacher)
    data = read(a.data, tokenizer)
    tuned, updates = AutoModelForSequenceClassification.from_pretrained, a.epochs * -(-len(data["train"]) // 32)
    runs = {name: (lambda: tuned(a.teacher), [REDUCE], losses) for name, losses in RUNS.items()}
    if a.base and a.corpus:
        general, bare = a.out / "general", lambda: AutoModel.from_pretrained(a.base)
        corpus = {"train": load_from_disk(str(a.corpus))}
        train(general, bare(), staged({"general": FEATURES}, a.general, [REDUCE]), corpus, tokenizer, bare())
        runs["base-two"] = (bare, [REDUCE, HEAD], RUNS["two"])
        runs["general-two"] = (lambda: AutoModel.from_pretrained(general / "01-general"), [HEAD], RUNS["two"])
    for name, seed in ((name, seed) for seed in a.seeds for name in runs):
        (start, first, losses), result = runs[name], a.out / f"{name}-{seed}" / "result.json"
        if not result.exists():
            stages = staged(losses, updates, first)
            trainer = train(result.parent, start(), stages, data, tokenizer, tuned(a.teacher), seed)
            result.write_text(json.dumps(accuracy(trainer, data)))
        print(f"{name:12} seed {seed}  {result.read_text()}", flush=True)


if __name__ == "__main__":
    main()
