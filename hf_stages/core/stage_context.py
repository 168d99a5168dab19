"""What a stage's parts may look at when they check themselves, before the first step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hf_stages.core.stage import Stage


@dataclass(frozen=True)
class StageContext:
    """A stage as its gates and transforms see it before it runs."""

    stage: Stage
    args: Any
    """The stage's TrainingArguments: the run's, with the stage's own on top."""
    eval_sets: Any = None
    """What the stage evaluates on: a dataset, ``{name: dataset}``, or None."""
    domains: tuple[str, ...] = ()
    """Names of all evaluation sets that are known at this stage."""
    earlier: tuple[str, ...] = ()
    """Those of them that stages before this one trained on."""

    @property
    def evaluates(self) -> bool:
        """Whether anything is evaluated while the stage trains."""
        strategy = self.args.eval_strategy
        return str(getattr(strategy, "value", strategy)) != "no"

    @property
    def sharded(self) -> bool:
        return is_sharded(self.args)


def is_sharded(args: Any) -> bool:
    """Whether FSDP splits the model's weights over the ranks."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
