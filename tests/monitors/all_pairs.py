"""The correlation of tokens by its definition."""

from __future__ import annotations

import torch


def by_all_pairs(states, real):
    """The mean off-diagonal entry of each row's Gram matrix of centred unit vectors, over the rows that have one."""
    found = []
    for row, kept in zip(states.double(), real.bool(), strict=True):
        row = row[kept]
        row = torch.nn.functional.normalize(row - row.mean(-1, keepdim=True), dim=-1)
        if len(row) > 1:
            pairs = row @ row.t()
            found.append((pairs.sum() - pairs.diagonal().sum()) / (len(row) * (len(row) - 1)))
    return float(torch.stack(found).mean())
