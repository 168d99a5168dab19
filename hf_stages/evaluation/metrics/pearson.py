"""Compute the linear correlation of numbers, as GLUE does for STS-B."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class Pearson(evaluate.Metric):
    """The Pearson correlation of numbers; 0 where either side is constant (it is then undefined).

    >>> Pearson(keep_in_memory=True).compute(predictions=[1.0, 2.0, 3.0], references=[2.0, 4.0, 6.0])["pearson"] > 0.999
    True
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="The Pearson correlation of numbers; 0 where either side is constant (it is then undefined).",
            citation="",
            inputs_description="predictions and references, one of each per item",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from scipy.stats import pearsonr

        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return {"pearson": 0.0}
        return {"pearson": float(pearsonr(references, predictions).statistic)}
