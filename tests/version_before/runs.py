"""The runs whose folders an earlier version wrote: what they train, and how they are read back.

Paths are relative to the folder that holds a run, so that it can be copied anywhere: go there first (``chdir``).
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments

from hf_stages import CachedTeacher, Stage, StagedTrainer
from hf_stages.core.curves import WSD, Cosine, Linear
from hf_stages.core.stops import RunInterrupted
from hf_stages.data import (
    ByDifficulty,
    ByLength,
    Lengths,
    Replay,
)
from hf_stages.losses import (
    HiddenMSE,
    LogitKL,
    TaskLoss,
)
from hf_stages.recipes import loads
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.training.from_recipe import build_trainer
from hf_stages.transforms import (
    Binarize,
    Freeze,
    Unfreeze,
)

HERE = Path(__file__).parent
OUT = "cut"
"""The output folder of every run that was cut; it lies in the run's own folder."""
CUT_AT = {"yaml": ("distil", 3), "python": ("second", 4)}
"""After how many updates of which stage."""
BATCH = [[4, 5, 6, 7, 8, 9], [12, 13, 14, 15, 4, 30]]
"""What logits are compared on."""

# ---- the run in Python ---------------------------------------------------------------------------------------------


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator of one's own: known by its module and name."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([[*row["input_ids"], *[0] * (width - len(row["input_ids"]))] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": ids.ne(0).long(), "labels": labels}


def difficulty(rows: list[dict[str, Any]]) -> list[float]:
    return [float(sum(row["input_ids"]) % 11) for row in rows]


def right(prediction: Any) -> dict[str, float]:
    """Metrics of one's own."""
    return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Examples of 3 to 8 tokens; the label says in which half of the vocabulary most of them lie."""
    numbers = range(start, start + count)
    made = [[4 + (i * 7 + j * (1 + i % 3) * 5) % 28 for j in range(3 + i % 6)] for i in numbers]
    return [{"input_ids": ids, "labels": int(sum(ids) / len(ids) > 17)} for ids in made]


def bert(seed: int, **changes: Any) -> BertForSequenceClassification:
    config = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "max_position_embeddings": 12, "num_labels": 2, "initializer_range": 0.3}
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**{**config, **changes}))


def in_memory(count: int, start: int) -> Dataset:
    """A dataset whose fingerprint is the same in all versions of ``datasets``."""
    made = Dataset.from_list(rows(count, start))
    return made.select(range(count), new_fingerprint=f"{count:08x}{start:08x}")


def python_stages() -> list[Stage]:
    hard = ByDifficulty(in_memory(24, 100), by=difficulty, window=4)
    return [
        Stage(
            "first",
            "5 steps",
            train_dataset=rows(20),
            teacher=CachedTeacher("cache"),
            loss=TaskLoss() + Linear(1, 0.5) * LogitKL(temperature=2),
            schedule=Fresh(warmup=2, shape=WSD(decay=0.4)),
            args={"weight_decay": 0.1, "per_device_train_batch_size": 4},
        ),
        Stage(
            "second",
            "8 steps",
            train_dataset=Replay(rows(20), Linear(0.5, 0.25), into=hard),
            loss=TaskLoss() + 0.5 * HiddenMSE() + Cosine(1, 0) * LogitKL(),
            transforms=[Freeze("word_embeddings")],
            schedule=Resume(),
            monitors=[],
        ),
        Stage(
            "third",
            "4 steps",
            data_collator=Lengths(Linear(4, 8), collator=collate),
            train_dataset=ByLength(rows(30, 50)),
            transforms=[Binarize(exclude="classifier", method="learned"), Unfreeze("word_embeddings")],
            schedule=Rewarm(to=5e-3, warmup=1),
        ),
    ]


def python_trainer(out: str) -> StagedTrainer:
    args = TrainingArguments(
        out,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=8e-3,
        adam_beta2=0.95,
        adam_epsilon=1e-4,
        max_grad_norm=0.7,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        seed=3,
        data_seed=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return StagedTrainer(
        bert(1),
        args,
        stages=python_stages(),
        teacher=bert(2, num_hidden_layers=2),
        train_dataset=in_memory(16, 0),
        eval_dataset=rows(10, 200),
        data_collator=collate,
        compute_metrics=right,
    )


# ---- the others -----------------------------------------------------------------------------------------------------


def yaml_trainer(out: str) -> StagedTrainer:
    """Read as text: by its path, sources would be known by absolute paths, which another machine does not have."""
    return build_trainer(loads(Path("recipe.yaml").read_text()), output_dir=out)


TRAINERS: dict[str, Callable[[str], StagedTrainer]] = {"yaml": yaml_trainer, "python": python_trainer}


class Watch(TrainerCallback):
    """Which updates were made, in which stage; asks for a stop after one of them."""

    def __init__(self, trainer: StagedTrainer, stop: tuple[str, int] | None = None) -> None:
        self.trainer, self.stop = trainer, stop
        self.updates: list[tuple[str, int]] = []
        self.loaded: dict[str, torch.Tensor] = {}
        """The weights before the first update."""

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.loaded:
            self.loaded = {name: value.clone() for name, value in self.trainer.model.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        stage = self.trainer._stage.planned.name
        self.updates.append((stage, state.global_step))
        mine = sum(name == stage for name, _ in self.updates)
        if self.stop is not None and self.stop == (stage, mine):
            self.trainer.request_stop("cut here")


def trained(
    kind: str, out: str = OUT, *, resume: bool = False, stop: tuple[str, int] | None = None
) -> tuple[StagedTrainer, Watch]:
    """Train, or go on, in the present folder; up to a cut if ``stop`` says so."""
    trainer = TRAINERS[kind](out)
    watch = Watch(trainer, stop)
    trainer.add_callback(watch)
    try:
        trainer.train(resume_from_checkpoint=resume)
        cut = False
    except RunInterrupted:
        cut = True
    assert cut == (stop is not None)
    return trainer, watch


# ---- what is compared ----------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Trained numbers are equal to the bit on one kind of processor and one version of torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": name, "torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}


def foreign(folder: Path) -> dict[str, str]:
    """What other libraries call the recipe's data and tokenizer, of which their fingerprints are made."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer").backend_tokenizer.to_str()
    return {
        "dataset": load_from_disk(str(folder / "prose"))._fingerprint,
        "tokenizer": hashlib.sha256(json.dumps(json.loads(tokenizer), sort_keys=True).encode()).hexdigest(),
    }


def weights_of(out: str | Path) -> dict[str, dict[str, torch.Tensor]]:
    """Of every stage's folder."""
    folders = sorted(path for path in Path(out).glob("[0-9]*-*") if (path / "model.safetensors").is_file())
    return {path.name: load_file(path / "model.safetensors") for path in folders}


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def history_of(trainer: StagedTrainer) -> list[dict[str, Any]]:
    """The log without clocks."""
    return [_without_clocks(log) for log in trainer.state.log_history]


def ledger_of(out: str | Path) -> list[dict[str, Any]]:
    return json.loads((Path(out) / "run.json").read_text())["ledger"]


def domains_of(out: str | Path) -> dict[str, Any]:
    """What every stage's folder says that it measured."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(Path(out).glob("[0-9]*/stage.json"))}
    return {name: _without_clocks(summary["metrics"]) for name, summary in found.items()}


def result_of(trainer: StagedTrainer, out: str | Path) -> dict[str, Any]:
    """All that a run gives; plain data."""
    checksums = {name: checksum(tensors) for name, tensors in weights_of(out).items()}
    found = {"weights": checksums, "history": history_of(trainer), "ledger": ledger_of(out), "metrics": domains_of(out)}
    return json.loads(json.dumps(found))


def _without_clocks(log: dict[str, Any]) -> dict[str, Any]:
    timed = ("_runtime", "_per_second", "seconds", "total_flos")
    return {key: value for key, value in log.items() if not key.endswith(timed)}


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor(BATCH)).logits.float()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with the way to it."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}.{key}")
    else:
        yield path, value


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """In the folder. (``contextlib.chdir`` came with Python 3.11.)"""
    import os

    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
