"""Metrics that need no network, as ``evaluate`` metrics over scikit-learn and scipy."""

from collections.abc import Iterable

from hf_stages.metrics.metrics import Metrics as Metrics

__all__ = ["Metrics", "metrics_by_name"]


def metrics_by_name(names: Iterable[str] | str, *, shift: bool = False) -> Metrics:
    """A ``compute_metrics`` for the Trainer.

    >>> import numpy as np
    >>> from transformers import EvalPrediction
    >>> logits, labels = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])
    >>> metrics_by_name("accuracy")(EvalPrediction(predictions=logits, label_ids=labels))
    {'accuracy': 0.5}
    """
    return Metrics((names,) if isinstance(names, str) else tuple(names), shift=shift)
