"""Compute the linear correlation of ranks, as GLUE does for STS-B."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class Spearman(evaluate.Metric):
    """The Spearman correlation of ranks; 0 where either side is constant (it is then undefined).

    >>> found = Spearman(keep_in_memory=True).compute(predictions=[1.0, 2.0, 3.0], references=[2.0, 4.0, 6.0])
    >>> found["spearman"] > 0.999
    True
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="The Spearman correlation of ranks; 0 where either side is constant (it is then undefined).",
            citation="",
            inputs_description="predictions and references, one of each per item",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from scipy.stats import spearmanr

        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return {"spearman": 0.0}
        return {"spearman": float(spearmanr(references, predictions).statistic)}
