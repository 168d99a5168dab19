"""Computes the stage x domain matrix of a run: the loss on every domain after every stage, forgetting and transfer.

With R[i][j] the loss on domain j after stage i, R[0][j] before any training, s(j) the first stage that trains on j, and
T the last stage of a branch (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, for accuracies; signs are turned so that
more is better)::

    forgetting  F[i][j] = R[i][j] - min over k <= i of R[k][j]     (k along the branch of i; never below zero)
    backward    B[j]    = R[s(j)][j] - R[T][j]                     (how much later stages improved j; negative:
    worsened) forward     W[j]    = R[0][j] - R[s(j) - 1][j]                 (how much earlier stages improved j)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_stages.core.depth_metrics import split_depth
from hf_stages.reports.run_folder import ReadRun

START = "start"


@dataclass(frozen=True)
class Matrix:
    """The values of one metric, where lower is better. The first row is the model before any training."""

    metric: str
    rows: tuple[str, ...]
    domains: tuple[str, ...]
    values: Mapping[tuple[str, str], float]
    parents: Mapping[str, str]
    """The row that each row but the first continues."""
    homes: Mapping[str, str]
    """The first stage that trains on each domain, where their names tell."""

    def branch(self, row: str) -> list[str]:
        """Return a row and all rows that it continues, latest first."""
        chain = [row]
        while (parent := self.parents.get(chain[-1])) is not None:
            chain.append(parent)
        return chain

    def forgotten(self, row: str, domain: str) -> float | None:
        """Return how much the value rose since the best one on this branch."""
        if (now := self.values.get((row, domain))) is None:
            return None
        return now - min(self.values[r, domain] for r in self.branch(row) if (r, domain) in self.values)

    @property
    def last(self) -> str | None:
        return self.rows[-1] if len(self.rows) > 1 else None

    def backward(self, domain: str) -> float | None:
        """Return backward transfer; None where the last stage is the domain's own, or does not continue it."""
        home, last = self.homes.get(domain), self.last
        if home is None or last is None or home == last or home not in self.branch(last):
            return None
        return self._difference((home, domain), (last, domain))

    def forward(self, domain: str) -> float | None:
        """Return forward transfer; None where no stage came before the domain's own."""
        home = self.homes.get(domain)
        before = self.parents.get(home) if home is not None else None
        if before is None or before == START:
            return None
        return self._difference((START, domain), (before, domain))

    def _difference(self, first: tuple[str, str], second: tuple[str, str]) -> float | None:
        if first not in self.values or second not in self.values:
            return None
        return self.values[first] - self.values[second]


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def matrix_of(run: ReadRun, metric: str = "loss") -> Matrix:
    """Make the matrix from the folders of finished stages. A stage that cannot be read gets no row."""
    values: dict[tuple[str, str], float] = {}
    parents: dict[str, str] = {}
    homes: dict[str, str] = {}
    names: dict[str, None] = {}
    known = {stage.name for stage in run.done}
    for stage in run.done:
        summary = stage.summary or {}
        parents[stage.name] = stage.parent if stage.parent in known and stage.parent is not None else START
        rows = [(stage.name, summary.get("domains") or {})]
        if stage.parent is None and not any(row == START for row, _ in values):
            rows.insert(0, (START, summary.get("domains_start") or {}))
        for row, domains in rows:
            for domain, found in domains.items():
                names.setdefault(domain)
                if isinstance(found.get(metric), int | float):
                    values[row, domain] = float(found[metric])
        for domain in summary.get("trains_on") or ():
            homes.setdefault(domain, stage.name)
    order = {stage.name: place for place, stage in enumerate(run.done)}
    domains = tuple(domain for domain in names if any(d == domain for _, d in values))
    domains = tuple(sorted(domains, key=lambda d: order.get(homes.get(d, ""), len(order))))  # as they are learned
    rows_shown = (START, *(stage.name for stage in run.done))
    return Matrix(metric, rows_shown, domains, values, parents, {d: homes[d] for d in domains if d in homes})


def metrics_of(run: ReadRun) -> list[str]:
    """Return every metric of any domain, the loss and bits per byte first, without counts and what is by depth."""
    found: dict[str, None] = {"loss": None, "bits_per_byte": None}
    for stage in run.done:
        for domain in ((stage.summary or {}).get("domains") or {}).values():
            found.update(dict.fromkeys(domain))
    return [name for name in found if name != "items" and split_depth(name) is None]
