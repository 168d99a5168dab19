"""The arms of distill_step that hf_stages runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks import _distill_task as shared
from benchmarks._turns import Turns
from benchmarks.common import arguments


def _train(task: str, loss: Any, options: argparse.Namespace, turns: Turns, out: str, **changes: Any) -> None:
    from hf_stages import Stage, StagedTrainer

    student, teacher = shared.pair(task)
    changes.setdefault("teacher", teacher)
    given = shared.settings(options)
    stage = Stage("distill", f"{given.pop('max_steps')} steps", loss=loss)
    staged = StagedTrainer(
        student,
        arguments(out, **given),
        stages=[stage],
        train_dataset=shared.rows(task, options.length),
        callbacks=[shared.Ticks(turns)],
        **changes,
    )
    staged.train()


def logit(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    from hf_stages.losses import LogitKL

    _train(task, LogitKL(), options, turns, out)


def hidden_attention(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    from hf_stages.losses import AttentionMSE, HiddenMSE, LogitKL

    _train(task, HiddenMSE(layers="uniform") + AttentionMSE(layers="uniform") + LogitKL(), options, turns, out)


def half_depth(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Compare hidden states that need nothing above the student's second and the teacher's third block."""
    from hf_stages.losses import AttentionMSE, HiddenMSE

    layers = {1: 1, 2: 3}
    _train(task, HiddenMSE(layers=layers) + AttentionMSE(layers=layers), options, turns, out)


def cached(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Read the teacher's logits from a cache that was made before the first step."""
    from hf_stages import Teacher
    from hf_stages.losses import LogitKL

    cache = Teacher(shared.pair(task)[1]).cache(shared.rows(task, options.length), f"{out}/cache")
    _train(task, LogitKL(), options, turns, out, teacher=cache)


ARMS: dict[str, Callable[[str, argparse.Namespace, Turns, str], None]] = {
    "ours_logit": logit,
    "ours_hidden_attention": hidden_attention,
    "ours_cached": cached,
    "ours_half_depth": half_depth,
}
