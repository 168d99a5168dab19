"""Models, ragged batches and losses whose gradient must not depend on how a batch is cut. Used by tests and workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from transformers import TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.losses import AttentionKL, AttentionMSE, AttentionRelation, HiddenMSE, LogitKL, LogitMSE, Loss, TaskLoss
from hf_stages.transforms import SplitTernary, Ternarize
from tests.support import tiny

ROWS = 8
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class LogitNorm(Loss):
    """A term with items of its own: the squared logits, over what carries a label."""

    def items(self, batch: Mapping[str, Any]) -> Any:
        labels = batch["labels"]
        return labels.numel() if labels.is_floating_point() else labels.ne(-100).sum()

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        squares = student.logits.pow(2).mean(-1)
        labels = batch["labels"]
        if labels.is_floating_point() or labels.shape != squares.shape:
            return squares.sum() * (self.items(batch) / squares.numel())
        return (squares * labels.ne(-100)).sum()


def mean_of_squares(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """A ``compute_loss_func``: the mean over the labels that count, or their sum over a count given from outside."""
    squares = outputs["logits"].pow(2).mean(-1)[:, 1:]
    kept = labels[:, 1:].ne(-100)
    return (squares * kept).sum() / (kept.sum() if num_items_in_batch is None else num_items_in_batch)


@dataclass(frozen=True)
class Pad:
    """Pads every field to the longest of the batch, or to more."""

    extra: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {}
        for key in rows[0]:
            values = [torch.as_tensor(row[key]) for row in rows]
            if values[0].dim() == 1 and key in ("input_ids", "attention_mask", "labels", "decoder_input_ids"):
                ragged = values[0].dtype == torch.int64
                length = max(len(v) for v in values) + (self.extra if ragged else 0)
                fill = -100 if key == "labels" else 0
                values = [torch.nn.functional.pad(v, (0, length - len(v)), value=fill) if ragged else v for v in values]
            batch[key] = torch.stack(values)
        return batch


@dataclass(frozen=True)
class Case:
    model: Callable[[], Any]
    rows: Callable[[], list[dict[str, Any]]]
    loss: Loss = field(default_factory=TaskLoss)
    args: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    padded: bool = True
    teacher: Callable[[], Any] | None = None


def _ids(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(3, tiny.VOCAB, (length,), generator=generator).tolist()


def text(label: Callable[[torch.Generator, list[int]], Any]) -> Callable[[], list[dict[str, Any]]]:
    """Eight rows of 4 to 11 tokens."""

    def rows() -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(3)
        found = []
        for index in range(ROWS):
            ids = _ids(generator, 4 + index)
            found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label(generator, ids)})
        return found

    return rows


def uneven(generator: torch.Generator, ids: list[int]) -> list[int]:
    """Labels of a prompt and its answer: the longer the row, the less of it counts; one row has none at all."""
    hidden = min(len(ids) // 2 + (len(ids) % 3) * 2, len(ids) - 1) if len(ids) != 7 else len(ids)
    return [-100] * hidden + ids[hidden:]


def scattered(generator: torch.Generator, ids: list[int]) -> list[int]:
    return [i % 3 if i % (len(ids) % 4 + 1) == 0 else -100 for i in ids]


def seq2seq() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(4)
    rows = []
    for index in range(ROWS):
        ids, answer = _ids(generator, 9 - index % 4), _ids(generator, 2 + index)
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": answer})
    return rows


def images() -> list[dict[str, Any]]:
    data = tiny.image_data(ROWS)
    return [{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in data]


def bert(kind: str = "BertForSequenceClassification", **changes: Any) -> Callable[[], Any]:
    def build() -> Any:
        config = tf.BertConfig.from_dict({**tiny.bert_config().to_dict(), **NO_DROPOUT, **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(tf, kind)(config)

    return build


def t5(seed: int = 0) -> Any:
    return tiny.t5(seed, dropout_rate=0.0)


def deeper(build: Callable[..., Any], **changes: Any) -> Callable[[], Any]:
    """A teacher with twice the layers and weights of its own."""
    return lambda: build(seed=1, num_hidden_layers=4, **changes)


def classes(generator: torch.Generator, ids: list[int]) -> int:
    return ids[0] % 3


def quantized(*transforms: Any, **changes: Any) -> Callable[[], Any]:
    """Activations stay: a last bit that differs with the batch's shape may round to another level."""

    def build() -> Any:
        model = tiny.llama(**changes)
        for transform in transforms:
            model = transform(model)
        return model

    return build


TERNARY = Ternarize(activations=None)
CASES = {
    "ternary": Case(quantized(Ternarize(method="learned", activations=None)), text(uneven)),
    "split": Case(quantized(TERNARY, SplitTernary()), text(uneven)),
    "classifier": Case(bert(), text(lambda g, ids: ids[0] % 3)),
    "causal": Case(tiny.llama, text(uneven)),
    "token": Case(bert("BertForTokenClassification"), text(scattered)),
    "masked": Case(bert("BertForMaskedLM"), text(uneven)),
    "seq2seq": Case(t5, seq2seq),
    "regression": Case(bert(num_labels=1), text(lambda g, ids: torch.randn((), generator=g).item())),
    "multilabel": Case(
        bert(problem_type="multi_label_classification"),
        text(lambda g, ids: [float(i % 2) for i in ids[:3]]),
    ),
    "image": Case(tiny.vit, images, padded=False),
    "smoothed": Case(tiny.llama, text(uneven), args={"label_smoothing_factor": 0.2}),
    "smoothed-classifier": Case(bert(), text(lambda g, ids: ids[0] % 3), args={"label_smoothing_factor": 0.2}),
    "loss-func": Case(tiny.llama, text(uneven), trainer={"compute_loss_func": mean_of_squares}),
    "custom": Case(tiny.llama, text(uneven), loss=LogitNorm()),
    "custom-classifier": Case(bert(), text(lambda g, ids: ids[0] % 3), loss=LogitNorm()),
    "summed": Case(tiny.llama, text(uneven), loss=Linear(0.7, 0.1) * TaskLoss() + 0.3 * (0.5 * LogitNorm())),
    "hidden,attention": Case(bert(), text(classes), HiddenMSE() + AttentionMSE(), teacher=deeper(tiny.bert)),
    "attention": Case(tiny.llama, text(uneven), AttentionKL(), teacher=deeper(tiny.llama)),
    "relation": Case(bert(), text(classes), AttentionRelation("K", heads=8), teacher=deeper(tiny.bert, hidden_size=48)),
    "projected": Case(
        tiny.llama,
        text(uneven),
        TaskLoss() + HiddenMSE(project="each"),
        teacher=deeper(tiny.llama, hidden_size=48),
    ),
    "projected,logits": Case(
        bert(), text(classes), HiddenMSE(project="shared") + LogitKL(2.0), teacher=deeper(tiny.bert, hidden_size=48)
    ),
    "logits": Case(tiny.llama, text(uneven), LogitKL(2.0), teacher=deeper(tiny.llama)),
    "logits,hidden": Case(tiny.llama, text(uneven), LogitMSE() + HiddenMSE(), teacher=deeper(tiny.llama)),
    "vision": Case(
        tiny.vit, images, HiddenMSE(distance="cosine") + AttentionKL(), padded=False, teacher=deeper(tiny.vit)
    ),
    "two-stacks": Case(t5, seq2seq, HiddenMSE(stack="decoder") + AttentionKL(stack="encoder"), teacher=lambda: t5(1)),
    "silent": Case(
        bert(),
        text(classes),
        Linear(0, 1) * TaskLoss() + Linear(0, 1) * HiddenMSE({2: 2}, project="each") + HiddenMSE({1: 2}),
        teacher=deeper(tiny.bert),
    ),
    "summed-token": Case(bert("BertForTokenClassification"), text(scattered), loss=TaskLoss() + LogitNorm()),
}


class Gradients(TrainerCallback):
    """The gradient of the first update as the optimizer gets it."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def arguments(out: Any, **changes: Any) -> TrainingArguments:
    """Quiet, on the CPU, plain SGD at a constant rate."""
    standard: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    if "WORLD_SIZE" in os.environ:
        standard |= {"ddp_backend": "gloo", "ddp_timeout": 60}
    return TrainingArguments(**{**standard, **changes})


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def gradient(name: str, out: Any, batch: int, accumulation: int = 1, *, extra: int = 0) -> dict[str, torch.Tensor]:
    """The gradient of one update over the case's eight rows, cut as said."""
    case, seen = CASES[name], Gradients()
    args = arguments(out, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **case.args)
    trainer = StagedTrainer(
        case.model(),
        args,
        train_dataset=Rows(case.rows()),
        data_collator=Pad(extra),
        callbacks=[seen],
        stages=[Stage("one", "1 steps", loss=case.loss)],
        teacher=case.teacher() if case.teacher is not None else None,
        **case.trainer,
    )
    trainer.train()
    return seen.found


def apart(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], floor: float = 1e-3) -> float:
    """The largest difference of any tensor, relative to the largest entry of that tensor (or of all, where it is
    ~0)."""
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    largest = max(t.abs().max().item() for t in a.values())
    return max(((a[n] - b[n]).abs().max() / max(a[n].abs().max().item(), floor * largest)).item() for n in a)
