"""Metrics that need no network: ``evaluate`` metrics made from scikit-learn and scipy."""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.evaluation.metrics.accuracy import Accuracy as Accuracy
    from hf_stages.evaluation.metrics.f1 import F1 as F1
    from hf_stages.evaluation.metrics.matthews_correlation import MatthewsCorrelation as MatthewsCorrelation
    from hf_stages.evaluation.metrics.metrics import Metrics as Metrics
    from hf_stages.evaluation.metrics.pearson import Pearson as Pearson
    from hf_stages.evaluation.metrics.spearman import Spearman as Spearman

_EXPORTS = Exports(__name__, ("metrics",))


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
