"""Give what is measured at a stage's start its own tags in TensorBoard, W&B and others: ``start/loss``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.integrations import integration_utils

from hf_stages.evaluation.start_metrics import START

_PREFIX = f"{START}_"


@contextmanager
def own_tags(logs: Mapping[str, Any] | None) -> Iterator[None]:
    """Use own tags while callbacks are given ``logs``.

    Trainer's trackers share one function for tags. It knows only ``eval_`` and ``test_``, and would put all else among
    the curves of training.
    """
    theirs = getattr(integration_utils, "rewrite_logs", None)
    if theirs is None or not any(key.startswith(_PREFIX) for key in logs or ()):
        yield
        return

    def rewrite_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
        tags = theirs({key: value for key, value in logs.items() if not key.startswith(_PREFIX)})
        own = {f"{START}/{key.removeprefix(_PREFIX)}": v for key, v in logs.items() if key.startswith(_PREFIX)}
        return {**tags, **own}

    integration_utils.rewrite_logs = rewrite_logs
    try:
        yield
    finally:
        integration_utils.rewrite_logs = theirs
