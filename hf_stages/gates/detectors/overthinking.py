"""Find that deep recurrence is worse than shallow."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Finding
from hf_stages.gates.detectors.depth_curves import DepthDetector, depth_curves


@dataclass(frozen=True)
class Overthinking(DepthDetector):
    """Finds that the perplexity at the greatest depth is above that at the best one.

    It reads an evaluation set at several depths (``eval_ppl_at_<depth>``).

    >>> logs = [{"step": s, "eval_ppl_at_1": 20.0, "eval_ppl_at_8": 15.0, "eval_ppl_at_64": 30.0} for s in (10, 20)]
    >>> Overthinking()(History(step=20, logs=logs)).reason[:44]
    'the deepest recurrence is worse than depth 8'
    """

    above: float = 0.1
    """The difference in ln(perplexity) between the greatest depth and the best that is accepted."""

    def find(self, history: History) -> Finding | None:
        curves = [curve for _, curve in depth_curves(history, self.of, last=self.evaluations)]
        rises = [curve[max(curve)] - min(curve.values()) for curve in curves]
        if len(rises) < self.evaluations or not min(rises) > self.above:
            return None
        newest = curves[-1]
        best, deepest = min(newest, key=lambda depth: newest[depth]), max(newest)
        return Finding(
            f"the deepest recurrence is worse than depth {best}",
            {f"ln(perplexity) at {deepest}": newest[deepest], f"at {best}": newest[best]},
            "train at random depths with a larger mean; use the model at the best depth, or with early exit",
        )
