"""Distil a fine-tuned 6-layer encoder to 3 layers on TREC questions: in one, two or three stages, at equal steps.

    python examples/distil_trec.py --teacher TUNED --data TREC --out out [--base ENCODER --corpus TOKENIZED]

TUNED and ENCODER are model folders. TREC holds train.txt and test.txt. TOKENIZED is a `datasets` folder of tokenized
text; with it, two more runs start from ENCODER, one of them with general distillation first. You may interrupt the
script and start it again: it skips finished runs and resumes the one in progress.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, load_from_disk
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from _arguments import command_line, training_arguments
from hf_stages import (
    AttentionMSE,
    HiddenMSE,
    LogitKL,
    Metrics,
    ReduceLayers,
    SetTask,
    Stage,
    StagedTrainer,
    TaskLoss,
)

LABELS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
FEATURES, LOGITS = HiddenMSE() + AttentionMSE(), LogitKL()
RUNS = {  # the loss of each stage; the stages of a run have equally many updates
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
    """Read the questions; a tenth of those for training is held out as "dev"."""
    split = questions(folder / "train.txt").train_test_split(0.1, seed=0)
    parts = {"train": split["train"], "dev": split["test"], "test": questions(folder / "test.txt")}
    return {name: tokenized(part, tokenizer) for name, part in parts.items()}


def train(out: Path, model, stages, data, tokenizer, teacher=None, seed=0, **changes) -> StagedTrainer:
    args = training_arguments(
        out, per_device_train_batch_size=32, per_device_eval_batch_size=64, warmup_steps=0.1, weight_decay=0.01,
        train_sampling_strategy="group_by_length", save_strategy="steps", save_steps=150, save_total_limit=1,
        logging_steps=50, seed=seed, use_cpu=False, **{"learning_rate": 1e-4, **changes},
    )  # fmt: skip
    evaluation = {"eval_dataset": data["dev"], "compute_metrics": Metrics("accuracy")} if "dev" in data else {}
    trainer = StagedTrainer(
        model,
        args,
        stages=stages,
        teacher=teacher,
        train_dataset=data["train"],
        processing_class=tokenizer,
        **evaluation,
    )
    trainer.train(resume_from_checkpoint=True)
    return trainer


def staged(losses, updates: int, first) -> list[Stage]:
    stages = [Stage(name, f"{updates // len(losses)} steps", loss=loss) for name, loss in losses.items()]
    return [replace(stages[0], transforms=first), *stages[1:]]


def accuracy(trainer: StagedTrainer, data) -> dict[str, float]:
    return {part: trainer.evaluate(data[part])["eval_accuracy"] for part in ("dev", "test")}


def parse(words=None) -> argparse.Namespace:
    parser = command_line(__doc__, required=("--teacher", "--data", "--out"))
    parser.add_argument("--base", type=Path, help="the encoder before fine-tuning")
    parser.add_argument("--corpus", type=Path, help="tokenized text for general distillation")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run, over all its stages")
    parser.add_argument("--general", type=int, default=600, help="updates of general distillation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args(words)


def main(words=None) -> None:
    # 1. Read the questions.
    options = parse(words)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    data = read(options.data, tokenizer)
    updates = options.epochs * -(-len(data["train"]) // 32)

    # 2. Declare the runs: how the student starts, the transforms of its first stage, the losses of its stages.
    def tuned():
        return AutoModelForSequenceClassification.from_pretrained(options.teacher)

    def bare():
        return AutoModel.from_pretrained(options.base)

    runs = {name: (tuned, [REDUCE], losses) for name, losses in RUNS.items()}

    # 3. If there is a corpus, distil the encoder on it, once for all seeds.
    if options.base and options.corpus:
        general = options.out / "general"
        corpus = {"train": load_from_disk(str(options.corpus))}
        train(general, bare(), staged({"general": FEATURES}, options.general, [REDUCE]), corpus, tokenizer, bare())
        runs["base-two"] = (bare, [REDUCE, HEAD], RUNS["two"])
        runs["general-two"] = (lambda: AutoModel.from_pretrained(general / "01-general"), [HEAD], RUNS["two"])

    # 4. Train and measure every run with every seed, unless its result is there.
    for name, seed in ((name, seed) for seed in options.seeds for name in runs):
        (start, first, losses), result = runs[name], options.out / f"{name}-{seed}" / "result.json"
        if not result.exists():
            stages = staged(losses, updates, first)
            trainer = train(result.parent, start(), stages, data, tokenizer, tuned(), seed)
            result.write_text(json.dumps(accuracy(trainer, data)))
        print(f"{name:12} seed {seed}  {result.read_text()}", flush=True)


if __name__ == "__main__":
    main()
