"""Turn a fine-tuned encoder into one bit and two bits on TREC questions: two ways and their ablations, at equal steps.

    python examples/quantize_trec.py --base ENCODER --data TREC --out out [--runs multi single] [--seeds 0 1 2]

ENCODER is a model folder. TREC holds train.txt and test.txt. ``--corpus`` is a `datasets` folder of tokenized text,
which the runs half-width and 2-bit-corpus need. A teacher is tuned for each seed, and the students start as that
teacher. 2-bit runs stop before the split, after as many updates as the others; ``multi`` also measures its own ternary
half. You may interrupt the script and start it again: it skips finished runs and resumes the one in progress.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from _arguments import command_line
from distil_trec import LABELS, accuracy, questions, read, tokenized, train
from hf_stages import Augment, Binarize, Metrics, Recipe, Stage, StagedTrainer, multi_stage, single_stage

FINE, BARE = AutoModelForSequenceClassification.from_pretrained, AutoModel.from_pretrained


def recipes_of(steps: int, rate: float = 4e-4, **general) -> dict[str, Recipe]:
    whole = f"{steps} steps"
    # Features have twice the rate of logits. After the split rates are halved: two halves move a weight twice as far.
    multi = {"learning_rate": [rate, rate / 2, rate / 2, rate / 4], "keep_features": True}
    single = {"learning_rate": rate / 2}
    return {
        "multi": multi_stage(whole, **multi),
        "2-bit": Recipe(multi_stage(f"{2 * steps} steps", **multi).stages[:2]),
        "2-bit-augmented": Recipe(multi_stage(f"{2 * steps} steps", **multi).stages[:2]),
        "2-bit-corpus": Recipe(multi_stage(f"{2 * steps} steps", **multi).stages[:2]),
        "2-bit-per-tensor": Recipe(multi_stage(f"{2 * steps} steps", per="tensor", **multi).stages[:2]),
        "single": single_stage(whole, **single),
        "augmented": single_stage(whole, **single),
        "per-tensor": single_stage(whole, per="tensor", **single),
        "3-layers": single_stage(whole, reduce=[2, 4, 6], **single),
        "no-teacher": Recipe([Stage("binary", whole, transforms=Binarize(), args={"learning_rate": rate / 4})]),
        "half-width": multi_stage(whole, width=0.5, set_task=LABELS, **multi, **general),
    }


def parse(words=None) -> argparse.Namespace:
    parser = command_line(__doc__, required=("--base", "--data", "--out"))
    parser.add_argument("--runs", nargs="*", default=["multi", "single"], choices=list(recipes_of(4)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each student, over all its stages")
    parser.add_argument("--tuning", type=int, default=4, help="epochs of each teacher")
    parser.add_argument("--corpus", type=Path, help="text for general distillation, and for 2-bit-corpus")
    parser.add_argument("--general", type=int, default=600, help="updates of general distillation")
    parser.add_argument("--copies", type=int, default=8, help="copies of each question in augmented runs")
    return parser.parse_args(words)


def general_distillation(options: argparse.Namespace) -> dict:
    """Give the arguments of ``multi_stage`` for general distillation, which a narrower student needs."""
    if "half-width" not in options.runs:
        return {}
    corpus = load_from_disk(str(options.corpus))
    return {"general": f"{options.general} steps", "corpus": corpus, "general_teacher": BARE(options.base)}


def augmented(options: argparse.Namespace, tokenizer) -> Dataset:
    """Make copies of the training questions in which words are replaced by their neighbours."""
    folder = str(options.out / "augment")
    augment = Augment(str(options.base), "text", n=options.copies, method="embeddings", cache=folder)
    raw = questions(options.data / "train.txt").train_test_split(0.1, seed=0)["train"]
    return tokenized(augment(raw), tokenizer)


def with_corpus(recipe: Recipe, options: argparse.Namespace, data: dict[str, Dataset]) -> Recipe:
    """Let the stage of features see as many rows of other text, which trains the embeddings of rare words too."""
    text = load_from_disk(str(options.corpus)).select(range(len(data["train"])))
    text = text.map(lambda row: {key: value[:32] for key, value in row.items()})
    more = concatenate_datasets([data["train"].select_columns(text.column_names), text])
    first, *rest = recipe.stages
    return Recipe([replace(first, train_dataset=more), *rest])


def starting_model(name: str, options: argparse.Namespace, tuned: Path):
    labels = {"num_labels": len(LABELS), "id2label": dict(enumerate(LABELS))}
    if name == "teacher":
        return FINE(options.base, **labels)
    return BARE(options.base) if name == "half-width" else FINE(tuned)


def run(name: str, seed: int, recipe: Recipe, options: argparse.Namespace, data, tokenizer) -> dict[str, float]:
    """Train one run and measure it."""
    out, tuned = options.out / f"{name}-{seed}", options.out / f"teacher-{seed}" / "01-tuned"
    own = {**data, "train": augmented(options, tokenizer)} if name.endswith("augmented") else data
    recipe = with_corpus(recipe, options, data) if name == "2-bit-corpus" else recipe
    model = starting_model(name, options, tuned)
    teacher = FINE(tuned) if name not in ("teacher", "no-teacher") else None
    trainer = train(out, model, recipe.stages, own, tokenizer, teacher, seed)
    found = accuracy(trainer, data)
    if name in ("multi", "half-width"):
        half = StagedTrainer.from_stage(next(out.glob("0?-ternary-logits")), trainer.args)
        half.compute_metrics = Metrics("accuracy")
        found["2-bit"] = accuracy(half, data)
    return found


def main(words=None) -> None:
    # 1. Read the questions.
    options = parse(words)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    data = read(options.data, tokenizer)

    # 2. Make the recipes of the students and of their teacher.
    recipes = recipes_of(options.epochs * -(-len(data["train"]) // 32), **general_distillation(options))
    recipes["teacher"] = Recipe([Stage("tuned", f"{options.tuning} epochs", args={"learning_rate": 5e-5})])

    # 3. For each seed, train and measure the teacher and then the students, unless their results are there.
    for name, seed in ((name, seed) for seed in options.seeds for name in ("teacher", *options.runs)):
        result = options.out / f"{name}-{seed}" / "result.json"
        if not result.exists():
            found = run(name, seed, recipes[name], options, data, tokenizer)
            result.write_text(json.dumps(found))
        print(f"{name:12} seed {seed}  {result.read_text()}", flush=True)


if __name__ == "__main__":
    main()
