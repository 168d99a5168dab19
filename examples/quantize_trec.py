"""One bit and two bits on TREC questions: the multi-stage and the single-stage path at equal steps, with their ablations.

    python examples/quantize_trec.py --base ENCODER --data TREC --out out [--runs multi single] [--seeds 0 1 2]

ENCODER: a model folder; TREC: train.txt and test.txt; --corpus: a `datasets` folder of tokenized text, for the half-width
run. A teacher is tuned for each seed, and students begin as that teacher. 2-bit runs
stop before the split, with as many updates as the others; `multi` also measures its own ternary half.
Cut it anywhere and start it again: what is done is skipped, what is in progress goes on.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import concatenate_datasets, load_from_disk
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from examples.distil_trec import LABELS, accuracy, questions, read, tokenized, train
from hf_stages import Recipe, Stage, StagedTrainer
from hf_stages.data import Augment
from hf_stages.evaluation.metrics import Metrics
from hf_stages.recipes import multi_stage, single_stage
from hf_stages.transforms import Binarize


def recipes_of(steps: int, rate: float = 4e-4, **general) -> dict[str, Recipe]:
    whole = f"{steps} steps"
    # Features at twice the rate of logits; after the split half as much: two halves move a weight twice as far.
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


def main(words=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--base", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=["multi", "single"], choices=list(recipes_of(4)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6, help="of each student, whatever its stages")
    parser.add_argument("--tuning", type=int, default=4, help="epochs of each teacher")
    parser.add_argument("--corpus", type=Path, help="text for general distillation, and for 2-bit-corpus")
    parser.add_argument("--general", type=int, default=600, help="updates of general distillation")
    parser.add_argument("--copies", type=int, default=8, help="of each question, in the augmented run")
    a = parser.parse_args(words)
    tokenizer, bare = AutoTokenizer.from_pretrained(a.base), AutoModel.from_pretrained
    data, fine = read(a.data, tokenizer), AutoModelForSequenceClassification.from_pretrained
    general = {}
    if "half-width" in a.runs:
        general = {
            "general": f"{a.general} steps",
            "corpus": load_from_disk(str(a.corpus)),
            "general_teacher": bare(a.base),
        }
    recipes = recipes_of(a.epochs * -(-len(data["train"]) // 32), **general)
    recipes["teacher"] = Recipe([Stage("tuned", f"{a.tuning} epochs", args={"learning_rate": 5e-5})])
    for name, seed in ((name, seed) for seed in a.seeds for name in ("teacher", *a.runs)):
        out, tuned, own = a.out / f"{name}-{seed}", a.out / f"teacher-{seed}" / "01-tuned", data
        if not (out / "result.json").exists():
            if name.endswith("augmented"):
                more = Augment(str(a.base), "text", n=a.copies, method="embeddings", cache=str(a.out / "augment"))
                raw = questions(a.data / "train.txt").train_test_split(0.1, seed=0)["train"]
                own = {**data, "train": tokenized(more(raw), tokenizer)}
            if (
                name == "2-bit-corpus"
            ):  # features of as many rows of other text, so that rare words move from where they were rounded
                text = load_from_disk(str(a.corpus)).select(range(len(data["train"])))
                text = text.map(lambda row: {key: value[:32] for key, value in row.items()})
                more = concatenate_datasets([data["train"].select_columns(text.column_names), text])
                first, *rest = recipes[name].stages
                recipes[name] = Recipe([replace(first, train_dataset=more), *rest])
            if name in ("teacher", "half-width"):
                labels = {"num_labels": len(LABELS), "id2label": dict(enumerate(LABELS))}
                model = fine(a.base, **labels) if name == "teacher" else bare(a.base)
            else:
                model = fine(tuned)
            teacher = fine(tuned) if name not in ("teacher", "no-teacher") else None
            trainer = train(out, model, recipes[name].stages, own, tokenizer, teacher, seed)
            found = accuracy(trainer, data)
            if name in ("multi", "half-width"):
                half = StagedTrainer.from_stage(next(out.glob("0?-ternary-logits")), trainer.args)
                half.compute_metrics = Metrics("accuracy")
                found["2-bit"] = accuracy(half, data)
            (out / "result.json").write_text(json.dumps(found))
        print(f"{name:12} seed {seed}  {(out / 'result.json').read_text()}", flush=True)


if __name__ == "__main__":
    main()
