"""Incidents: the rows of an update that went wrong, as ``_private/incidents/step-N.jsonl`` holds them.

The first line says what happened, each further line is a row, the worst first.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from hf_stages.core.sealed_folders import SCHEMA, NewerSchema

FOLDER = "_private/incidents"
"""The folder in a run's that holds them. They hold training data: ``push_to_hub`` leaves out what begins with ``_``."""
BATCHES, WEIGHTS = ".batches.safetensors", ".weights.safetensors"
"""What lies beside an incident's file: the micro-batches, and the weights that its rows were measured with."""
_NAME = re.compile(r"^step-(\d+)\.jsonl$")
_SIGMAS, _LEAST, _OF_WORST = 4.0, 0.25, 0.1
"""A row stands out that is as many standard deviations above the usual loss, at least by this share of it, and as far
above it as this share of the way to the worst row: beside a garbage row, a somewhat hard one is none."""


@dataclass(frozen=True)
class IncidentRow:
    """One row of an update, and how well the model knew it."""

    rank: int
    micro_batch: int
    row: int
    """Its number in the micro-batch."""
    loss: float | None
    """The loss of the row alone; None where it has no target or could not be measured."""
    tokens: int = 0
    examples: tuple[Mapping[str, Any], ...] = ()
    """``{source, index, position}`` of the examples that it is made of. A packed row lists all of its micro-batch."""
    text: str | None = None
    stands_out: bool = False
    """Whether its loss is far above what is usual, or not a number."""

    def with_text(self, text: str | None) -> IncidentRow:
        return self if text is None else replace(self, text=text)

    @property
    def is_finite(self) -> bool:
        return self.loss is None or math.isfinite(self.loss)

    @property
    def badness(self) -> float:
        """What rows are sorted by: those that are not finite first, then the largest loss."""
        if self.loss is None:
            return -math.inf
        return self.loss if math.isfinite(self.loss) else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it: a number that JSON has no word for is text."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        return {**data, "loss": self.loss if self.is_finite else str(self.loss), "examples": list(self.examples)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> IncidentRow:
        loss = data.get("loss")
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        known |= {"loss": None if loss is None else float(loss), "examples": tuple(data.get("examples", ()))}
        return cls(**known)


@dataclass(frozen=True)
class Incident:
    """What happened, when, and to which rows."""

    step: int
    """The update of the run, as the log counts them."""
    stage: str
    by: str
    """The class of the detector."""
    reason: str
    t: float
    """The progress of the stage when the update began."""
    before: bool
    """Whether the rows were measured with the weights from before this update; else with those after it."""
    usual: float | None
    """The loss that rows are compared with."""
    rows: tuple[IncidentRow, ...] = ()
    left_out: int = 0
    """Rows that are not listed, because they are too many."""
    problem: str | None = None
    """Why some rows could not be measured."""
    rebuild: Mapping[str, Any] = field(default_factory=dict)
    """What a replay needs to know of the model and the losses."""

    @property
    def standing_out(self) -> list[IncidentRow]:
        return [row for row in self.rows if row.stands_out]

    def worst(self, most: int) -> list[IncidentRow]:
        """The worst rows whose loss is known."""
        return [row for row in self.rows if row.loss is not None][:most]

    def summary(self) -> str:
        """Say in a sentence what was found."""
        count, measured = len(self.standing_out), [row for row in self.rows if row.loss is not None]
        if not measured:
            count = len(self.rows) + self.left_out
            if self.problem is not None or not count:
                return f"no row of the update could be measured: {self.problem or 'it has none'}"
            return (
                f"no row of the update has a target: {_all_of(count)} only ignored labels (-100), and a mean over "
                "nothing is no number; drop such rows, or let a longer max_length keep their labels"
            )
        broken = sum(not row.is_finite for row in self.rows)
        told = f"{count} of {len(self.rows) + self.left_out} rows stand out"
        told += f" ({broken} not finite)" if broken else ""
        worst = self.rows[0]
        usual = "" if self.usual is None else f" against {self.usual:.4g} as usual"
        return f"{told}; the worst is {describe_examples(worst)}, loss {worst.loss:.4g}{usual}"

    def header(self) -> dict[str, Any]:
        data = {key: value for key, value in asdict(replace(self, rows=())).items() if key != "rows"}
        return {"schema": SCHEMA, **data, "rows": len(self.rows), "stand_out": len(self.standing_out)}


def _all_of(count: int) -> str:
    return "its one row has" if count == 1 else f"all {count} rows have"


def describe_examples(row: IncidentRow) -> str:
    """Name the examples of a row in a few words.

    >>> describe_examples(IncidentRow(0, 0, 1, 2.0, examples=({"source": "web", "index": 17, "position": 40},)))
    'row 17 of web'
    """
    if not row.examples:
        return f"row {row.row} of micro-batch {row.micro_batch} on rank {row.rank}"
    first = row.examples[0]
    named = "" if first.get("source") is None else f" of {first['source']}"
    index = first.get("index")
    told = f"row {index}{named}" if index is not None else f"the example at position {first.get('position')}{named}"
    return told if len(row.examples) == 1 else f"{told} or another of {len(row.examples)} that were put together"


def judge_rows(rows: Iterable[IncidentRow], typical: float | None) -> tuple[list[IncidentRow], float | None]:
    """Sort rows, the worst first, and mark those that stand out. Returns them and the loss they are compared with.

    The usual loss is the rows' median, or ``typical`` where that is lower: so a batch that is bad as a whole stands
    out, too. The spread is taken from the rows below the usual loss: the bad ones are above it.

    >>> made = [IncidentRow(0, 0, i, loss) for i, loss in enumerate([2.0, 2.2, 9.0, 2.1, float("nan"), 1.9])]
    >>> found, usual = judge_rows(made, None)
    >>> [(row.row, row.stands_out) for row in found][:3], usual
    ([(4, True), (2, True), (1, False)], 2.1)
    """
    rows = sorted(rows, key=lambda row: (-row.badness, row.rank, row.micro_batch, row.row))
    finite = [row.loss for row in rows if row.loss is not None and math.isfinite(row.loss)]
    centers = [median(finite)] if finite else []
    centers += [typical] if typical is not None and math.isfinite(typical) else []
    if not centers:
        return [replace(row, stands_out=not row.is_finite) for row in rows], None
    usual = min(centers)
    limit = _limit(usual, finite)
    return [replace(r, stands_out=r.loss is not None and not r.loss <= limit) for r in rows], usual


def _limit(usual: float, losses: Sequence[float]) -> float:
    """Return the loss above which a row stands out."""
    below = [usual - loss for loss in losses if loss <= usual]
    spread = 1.4826 * median(below) if below else 0.0  # from a median of distances to a standard deviation
    farthest = max(losses, default=usual) - usual
    return usual + max(_SIGMAS * spread, _LEAST * abs(usual), _OF_WORST * farthest)


# ---- files -----------------------------------------------------------------------------------------------------------


def incident_file(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step}.jsonl"


def remove_incident(out: Path, step: int) -> None:
    """Remove an incident and what lies beside it."""
    path = incident_file(out, step)
    for suffix in (".jsonl", BATCHES, WEIGHTS):
        path.with_suffix(suffix).unlink(missing_ok=True)


def write_incident(out: Path, incident: Incident) -> Path:
    """Write the file in one step: readers see all of it or nothing."""
    path = incident_file(out, incident.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    lines = [incident.header(), *(row.to_dict() for row in incident.rows)]
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read_incident(path: Path) -> Incident:
    """Read an incident. A file that is damaged or of a newer version is refused."""
    try:
        first, *others = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if first["schema"] > SCHEMA:
            raise NewerSchema(f"{path}: written with schema {first['schema']}, this version reads up to {SCHEMA}")
        known = {key: first[key] for key in Incident.__dataclass_fields__ if key in first}
        return Incident(**{**known, "rows": tuple(map(IncidentRow.from_dict, others))})
    except NewerSchema:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"not readable as an incident ({type(error).__name__}: {error})"
        raise ValueError(f"{path}: {problem}; the file is damaged, or no incident's") from error


def incident_steps(out: str | Path) -> list[int]:
    """List the steps at which a run has incidents."""
    folder = Path(out) / FOLDER
    found = (_NAME.match(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def read_incidents(out: str | Path, steps: Sequence[int] | None = None) -> list[Incident]:
    return [read_incident(incident_file(Path(out), step)) for step in (incident_steps(out) if steps is None else steps)]
