"""The Trainer that calls a callback, and what it cannot evaluate on."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Trainer


def calling_trainer(callback: object) -> Any:
    """Find the Trainer that calls: it tells callbacks everything but itself.

    Args:
        callback: The callback that is called, for the error where no Trainer calls it.
    """
    frame = inspect.currentframe()
    while frame is not None:
        own = frame.f_locals.get("self")
        if isinstance(own, Trainer):
            return own
        frame = frame.f_back
    raise ValueError(f"{type(callback).__name__}: expected to be called by a transformers Trainer, and found none")


def check_evaluation_sets(trainer: Any) -> None:
    """Refuse evaluation sets that Trainer itself cannot read, rather than to let the first evaluation end the run."""
    sets = trainer.eval_dataset if type(trainer).evaluate is Trainer.evaluate else None
    for one in sets.values() if isinstance(sets, dict) else (sets,):
        if getattr(one, "needs_stages", False):
            raise ValueError(
                f"eval_dataset: {type(one).__name__} is measured by a StagedTrainer with stages alone; give a plain "
                "Trainer the dataset itself, and measure depths within at_depth(model, depth)"
            )
