"""Compute the correlation of classes, as GLUE does for CoLA."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class MatthewsCorrelation(evaluate.Metric):
    """The Matthews correlation coefficient: 1 is perfect, 0 is chance.

    >>> MatthewsCorrelation(keep_in_memory=True).compute(predictions=[0, 1, 1, 0], references=[0, 1, 1, 0])
    {'matthews_correlation': 1.0}
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="The Matthews correlation coefficient: 1 is perfect, 0 is chance.",
            citation="",
            inputs_description="predictions and references, one of each per item",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from sklearn.metrics import matthews_corrcoef

        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
