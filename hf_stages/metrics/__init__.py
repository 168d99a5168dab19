"""Metrics that need no network, as ``evaluate`` metrics over scikit-learn and scipy."""

from hf_stages.metrics.metrics import Metrics as Metrics
from hf_stages.metrics.metrics import metrics_by_name as metrics_by_name

__all__ = ["Metrics", "metrics_by_name"]
