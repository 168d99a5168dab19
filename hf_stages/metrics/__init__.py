"""Metrics that need no network, as ``evaluate`` metrics over scikit-learn and scipy."""

from hf_stages.metrics.metrics import Metrics as Metrics

__all__ = ["Metrics"]
