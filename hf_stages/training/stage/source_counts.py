"""What a stage has really drawn: examples and tokens of each source, in total, since the last log, and over time."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from hf_stages.core.batch import DRAWN
from hf_stages.data.drawing.blend import Blend

BINS = 20
"""Points of the record over time."""
Counts = list[list[float]]
"""[examples, tokens] of each source."""


class SourceCounts:
    """Counts over all ranks. The counts of an update are summed in its one all-reduce."""

    def __init__(self, blend: Blend | None, steps: int, global_batch: int) -> None:
        self.blend, self.steps, self.global_batch = blend, steps, global_batch
        self.names = blend.names if blend is not None else ()
        self.over_time: list[Counts] = [self._none() for _ in range(BINS)]
        self.since_log = self._none()

    def take_out_of(self, batches: Sequence[Any]) -> list[Any]:
        """Take this rank's counts out of its micro-batches: the model is not to see them."""
        if not self.names:
            return []
        totals: Any = torch.zeros(len(self.names), 2, dtype=torch.int64)
        for batch in batches:
            found = batch.pop(DRAWN, None) if isinstance(batch, MutableMapping) else None
            if found is not None and len(found):
                totals = totals.to(found.device)
                totals.index_add_(0, found[:, 0], torch.stack([torch.ones_like(found[:, 1]), found[:, 1]], 1))
        return list(totals.flatten().unbind())

    def add(self, counts: Sequence[float], update: int) -> None:
        """Add the counts of an update, summed over ranks."""
        now = self.over_time[min(update * BINS // self.steps, BINS - 1)]
        for i in range(len(self.names)):
            for kind in (0, 1):
                now[i][kind] += counts[2 * i + kind]
                self.since_log[i][kind] += counts[2 * i + kind]

    def drain_log(self) -> dict[str, float]:
        """Give the shares since the last log: of tokens where the mixture weighs tokens, else of examples."""
        if len(self.names) < 2:
            return {}
        shares, self.since_log = self._shares(self.since_log), self._none()
        return (
            {f"share_{name}": round(share, 6) for name, share in zip(self.names, shares, strict=True)} if shares else {}
        )

    def summary(self, updates: int) -> dict[str, Any] | None:
        """Compare realized with declared shares, for ``stage.json``; None where the data is one plain dataset."""
        blend = self.blend
        if blend is None:
            return None
        totals = self._none()
        for counts in self.over_time:
            _add(totals, counts)
        shares, record = self._shares(totals), self._record(blend, updates)
        declared = blend.declared_shares(0, updates * self.global_batch) if updates else []
        if blend.one_by_one and record:  # shares of what was read in each stretch, which only the record knows
            read = [sum(tokens for _, tokens in counts) for counts in self.over_time if self._shares(counts)]
            declared = [
                sum(point["declared"][name] * tokens for point, tokens in zip(record, read, strict=True)) / sum(read)
                for name in self.names
            ]
        sources = {}
        for i, leaf in enumerate(blend.leaves):
            examples, tokens = totals[i]
            sources[leaf.name] = {
                "examples": round(examples),
                "tokens": round(tokens),
                "share": round(shares[i], 6) if shares else None,
                "declared": round(declared[i], 6) if declared else None,
                "available": leaf.n,
                "passes": round(self._draws(i, examples) / leaf.n, 4) if leaf.n else None,
            }
        return {
            "shares_of": "tokens" if blend.one_by_one else "examples",
            "sources": sources,
            "over_time": record,
        }

    def _draws(self, i: int, examples: float) -> float:
        """Count places that hold several rows once."""
        assert self.blend is not None
        rows = getattr(self.blend.leaves[i].dataset, "order", None)
        return examples if rows is None else examples * (self.blend.leaves[i].n or 0) / len(rows)

    def _record(self, blend: Blend, updates: int) -> list[dict[str, Any]]:
        record = []
        edges = [-(-b * self.steps // BINS) for b in range(BINS)]
        for counts, first, end in zip(self.over_time, edges, [*edges[1:], updates], strict=True):
            if shares := self._shares(counts):
                last = min(max(end, first + 1), updates)
                declared = blend.declared_shares(first * self.global_batch, last * self.global_batch)
                record.append(
                    {
                        "t": round((first + last) / 2 / self.steps, 4),
                        "share": {name: round(s, 6) for name, s in zip(self.names, shares, strict=True)},
                        "declared": {name: round(s, 6) for name, s in zip(self.names, declared, strict=True)},
                    }
                )
        return record

    def _shares(self, counts: Counts) -> list[float]:
        kind = int(self.blend is not None and self.blend.one_by_one)
        drawn = [count[1] if kind else self._draws(i, count[0]) for i, count in enumerate(counts)]
        return [one / sum(drawn) for one in drawn] if sum(drawn) else []

    def _none(self) -> Counts:
        return [[0.0, 0.0] for _ in self.names]

    # ---- what survives a cut -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"over_time": self.over_time, "since_log": self.since_log} if self.names else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.over_time, self.since_log = (
                [[list(c) for c in b] for b in state["over_time"]],
                [list(c) for c in state["since_log"]],
            )


def _add(totals: Counts, counts: Counts) -> None:
    for total, count in zip(totals, counts, strict=True):
        total[0] += count[0]
        total[1] += count[1]
