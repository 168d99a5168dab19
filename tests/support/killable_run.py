"""A small run with much in it that a cut could lose: the subject of the kill tests."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Cosine, Linear
from hf_stages.gates import CutRate, OnSpike, Plateau, Rollback
from hf_stages.monitors import GradientNorm, QuantizedWeights, RawLoss, TokenCorrelation, UpdateRatio
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.transforms import AddLora, Binarize, Freeze, MergeLora, ResizeVocab, SplitTernary, Ternarize
from tests.support import tiny

PAD, MASK = 0, 3


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Examples of 6 to 14 tokens, each with a number of its own."""
    draw = random.Random(seed)
    texts = [[draw.randrange(4, tiny.VOCAB) for _ in range(draw.randint(6, 14))] for _ in range(count)]
    return [{"id": i, "input_ids": text} for i, text in enumerate(texts)]


def masked(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads, and masks at random with all three generators that a collator may draw from."""
    longest = max(len(e["input_ids"]) for e in examples)
    ids = torch.tensor([e["input_ids"] + [PAD] * (longest - len(e["input_ids"])) for e in examples])
    attention, labels = ids.ne(PAD).long(), ids.masked_fill(ids == PAD, -100)
    chance = 0.05 + 0.1 * random.random() + 0.1 * np.random.random()
    hidden = (torch.rand(ids.shape) < chance) & attention.bool()
    batch = {"input_ids": ids.masked_fill(hidden, MASK), "attention_mask": attention, "labels": labels}
    return {**batch, "id": torch.tensor([e["id"] for e in examples])}


class Stream(torch.utils.data.IterableDataset):
    """Reads the rows in another order in each pass."""

    def __init__(self, count: int) -> None:
        self.rows, self.epoch = rows(count, seed=1), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def take(self, count: int) -> list[dict[str, Any]]:
        return self.rows[:count]

    def __iter__(self):
        yield from random.Random(self.epoch).sample(self.rows, len(self.rows))


class RecordedTrainer(StagedTrainer):
    """Writes down what each update is about to see, and where the generators stand."""

    record: Path
    poison: dict[str, float]
    """What gradients are multiplied by after so many updates of the run."""

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        factor = self.poison.get(str(self.state.global_step))
        if factor is not None and self.accelerator.sync_gradients:
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.grad *= factor
        return loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        ids = [batch.pop("id").tolist() for batch in batches]
        tensors = [batch[key].numpy().tobytes() for batch in batches for key in sorted(batch)]
        line = {
            "step": self.state.global_step,
            "stage": self._stage.planned.name if self._stage else "",
            "ids": ids,
            "batches": _digest(*tensors),
            "generators": generators(),
            "rates": [group["lr"] for group in self.optimizer.param_groups],
        }
        with open(self.record, "a") as file:
            file.write(json.dumps(line) + "\n")
        return batches, items

    def prediction_step(self, model, inputs, *args, **kwargs):
        inputs.pop("id", None)
        return super().prediction_step(model, inputs, *args, **kwargs)


def stages(o: dict[str, Any]) -> list[Stage]:
    resized = [ResizeVocab(to=80)] if o.get("resize") else []
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    epochs = o.get("strategy") == "epoch"
    args = {} if epochs else {"eval_steps": 2, "save_steps": 2}
    if o.get("quantized"):
        return [
            Stage(
                "ternary",
                "9 steps",
                transforms=[Ternarize(strength=Linear(0, 1), clip=2.0)],
                schedule=Fresh(),
                monitors=[QuantizedWeights()],
            ),
            Stage("split", "7 steps", transforms=[SplitTernary()], schedule=Fresh(optimizer="carry")),
            Stage("binary", "5 steps", transforms=[Binarize("lm_head", method="learned")], schedule=Resume()),
        ]
    if o.get("poison"):
        again = Rollback(9, skip_data=False, factor=0.9)
        ladder = OnSpike(skip=1, window=6, cooldown=8, then=[CutRate(0.5), Rollback(4, factor=0.8), again])
        return [
            Stage("climb", "33 steps", train_dataset=Dataset.from_list(rows(32, seed=3)), gates=[ladder]),
            Stage("calm", "5 steps", schedule=Fresh(optimizer="carry"), gates=[OnSpike(window=4)]),
        ]
    if o.get("stream"):
        return [
            Stage("stream", "9 steps", train_dataset=Stream(22), schedule=Fresh(shape=Cosine(1, 0))),
            Stage("tokens", "420 tokens", train_dataset=Stream(9), schedule=Resume()),
        ]
    if o.get("sampling"):
        return [
            Stage("grouped", "3 epochs", args={"train_sampling_strategy": "group_by_length"}),
            Stage("in-order", "12 steps", args={"train_sampling_strategy": "sequential"}),
        ]
    return [
        Stage("head", "2 epochs", transforms=[Freeze("embed_tokens")], schedule=Fresh(warmup=2, shape=Linear(1, 0.1))),
        Stage("more", "480 tokens", schedule=Resume(), transforms=resized),
        Stage(
            "lora",
            "20 steps",
            transforms=[AddLora(r=4, target_modules=["q_proj", "v_proj"], dropout=0.2)],
            schedule=Rewarm(to=2e-3, warmup="2 steps"),
            monitors=[RawLoss(), GradientNorm(), TokenCorrelation(every=3), UpdateRatio(every=1)],
            gates=[Plateau("eval_loss", patience=2, min_delta=9.0)],  # fires at the third evaluation
        ),
        Stage(
            "merged",
            "6 steps",
            transforms=[MergeLora()],
            schedule=Fresh(peak=5e-3, optimizer="carry"),
            args={**best, **args},
        ),
    ]


def build(out: Path, options: dict[str, Any]) -> RecordedTrainer:
    o = dict(options)
    strategy = o.get("strategy", "steps")
    args = TrainingArguments(
        str(out),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=3e-3,
        optim=o.get("optim", "adamw_torch"),
        logging_steps=2,
        eval_strategy=strategy,
        eval_steps=3,
        save_strategy=strategy,
        save_steps=o.get("save_steps", 3),
        save_total_limit=o.get("save_total_limit", 1),
        dataloader_num_workers=o.get("workers", 0),
        remove_unused_columns=False,
        include_num_input_tokens_seen="all",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny.llama(attention_dropout=0.2, **({"hidden_size": 64} if o.get("wide") else {}))
    trainer = RecordedTrainer(
        model,
        args,
        stages=stages(o),
        data_collator=masked,
        train_dataset=Dataset.from_list(
            rows(27, seed=1)
        ),  # 14 batches, the last of 1: updates of 4, 4, 4 and 2 batches
        eval_dataset=Dataset.from_list(rows(5, seed=2)),
    )
    trainer.poison = o.get("poison", {})
    return trainer


def main(out: Path, resume: bool, options: dict[str, Any]) -> None:
    """Train, and write down what is left in memory at the end."""
    trainer = build(out, options)
    trainer.record = out.with_suffix(".updates")
    result = trainer.train(resume_from_checkpoint=resume)
    with torch.no_grad():
        weights = {name: _digest(value.numpy().tobytes()) for name, value in trainer.model.state_dict().items()}
    end = {
        "global_step": trainer.state.global_step,
        "result": [result.global_step, result.training_loss],
        "history": trainer.state.log_history,
        "weights": weights,
        "generators": generators(),
    }
    out.with_suffix(".end").write_text(json.dumps(end))


def generators() -> str:
    numpy = np.random.get_state()
    return _digest(
        repr(random.getstate()), numpy[1].tobytes() + bytes([numpy[2] % 256]), torch.get_rng_state().numpy().tobytes()
    )


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def warm_up() -> None:
    """Import all that a child needs, and start no thread: forks carry none along."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "warning"
    torch.set_num_threads(1)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "out", {}).plan()
    gc.collect()
    gc.freeze()  # children would search all these modules for garbage, 0.4 s each time
