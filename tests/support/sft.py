"""TRL's SFTTrainer under the mixin, on a tiny model and a few lines of text. What imports this is skipped without
TRL."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_stages.training.trainer import StagedMixin
from tests.support import tiny

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

TOKENIZER = tiny.tokenizer()

PROSE = ["a stage is a stretch of training", "one model", "what is learned first stays", "two and two"] * 4

TALK = {"prompt": ["two and two?", "and what is one and one?"] * 8, "completion": [" four", " two, as always"] * 8}

QUIET = {
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "bf16": False,
}


class StagedSFT(StagedMixin, trl.SFTTrainer):
    pass


def prose() -> Dataset:
    return Dataset.from_dict({"text": PROSE})


def talk() -> Dataset:
    return Dataset.from_dict(TALK)


def arguments(out, **changes):
    given = {"per_device_train_batch_size": 4, "max_length": 48, "learning_rate": 1e-3, **QUIET, **changes}
    return trl.SFTConfig(str(out), **given)


def model(seed=0, **changes):
    return tiny.llama(seed, vocab_size=len(TOKENIZER), **changes)


def staged(out, *stages, kind=StagedSFT, student=None, data=None, args=None, **kwargs):
    args = arguments(out) if args is None else args
    student = model() if student is None else student
    data = prose() if data is None else data
    return kind(student, args, train_dataset=data, processing_class=tiny.tokenizer(), stages=list(stages), **kwargs)


def logged(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


def apart(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return max((mine[name].float() - theirs[name].float()).abs().max().item() for name in mine)
