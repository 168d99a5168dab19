"""Compute F1, the harmonic mean of precision and recall."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class F1(evaluate.Metric):
    """F1 of class 1 where all classes are 0 or 1, else the plain mean over classes (macro).

    >>> F1(keep_in_memory=True).compute(predictions=[0, 1, 1, 1], references=[0, 1, 1, 0])
    {'f1': 0.8}
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="F1 of class 1 where all classes are 0 or 1, else the plain mean over classes (macro).",
            citation="",
            inputs_description="predictions and references, one of each per item",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any, average: str | None = None) -> dict[str, float]:
        from sklearn.metrics import f1_score

        if average is None:
            average = "binary" if {*predictions, *references} <= {0, 1} else "macro"
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0.0))}
