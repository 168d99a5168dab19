"""Compute the share of right answers."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their references.

    >>> Accuracy(keep_in_memory=True).compute(predictions=[0, 1, 1, 1], references=[0, 1, 1, 0])
    {'accuracy': 0.75}
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="The share of predictions that equal their references.",
            citation="",
            inputs_description="predictions and references, one of each per item",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        return {"accuracy": float(accuracy_score(references, predictions))}
