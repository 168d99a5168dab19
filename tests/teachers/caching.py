"""Runs with a teacher, and rows of different lengths to cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import LogitKL
from tests.support import tiny

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""With AVX512-BF16 bitsandbytes multiplies 4-bit weights of a multiple of 32 outputs alone: k_proj and v_proj have
32."""


def trainer_of(out: Path, teacher, loss, *, data=None, batch: int = 4, **options) -> StagedTrainer:
    given = {"per_device_train_batch_size": batch, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    given |= {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    data = tiny.lm_data() if data is None else data
    stages = [Stage("a", "6 steps", loss=loss)]
    model = options.pop("model", None) or tiny.llama()
    return StagedTrainer(
        model, TrainingArguments(str(out), **given), stages=stages, teacher=teacher, train_dataset=data, **options
    )


def trained(out: Path, teacher, loss, **options) -> torch.Tensor:
    trainer = trainer_of(out, teacher, loss, **options)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def ragged(rows: int = 12) -> list[dict]:
    """Rows of different lengths, none of them twice."""
    draw = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(3, tiny.VOCAB, (3 + i % 7,), generator=draw).tolist()} for i in range(rows)]


def padded(rows: list[dict], *, left: bool = False, extra: int = 0) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows) + extra
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row["input_ids"]), width) if left else slice(0, len(row["input_ids"]))
        ids[i, at], mask[i, at] = torch.tensor(row["input_ids"]), 1
    return {"input_ids": ids, "attention_mask": mask}


def dense(signals) -> torch.Tensor:
    final = signals.final
    return final if torch.is_tensor(final) else final.module(final.hidden)


def refused(tmp_path: Path, teacher, message: str, loss=None, **options) -> None:
    trainer = trainer_of(tmp_path / "out", teacher, loss or 1.0 * LogitKL(), **options)
    with pytest.raises(ValueError, match=message):
        trainer.plan()
