"""Writes incidents as text: which there are, the rows of one, and what came of replaying it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hf_stages.reports.incident_replay import Replay
from hf_stages.reports.incidents import Incident, IncidentRow, describe_examples
from hf_stages.reports.text import shorten

_HEADS = ("step", "stage", "noticed by", "rows", "stand out", "worst")


def incidents_table(incidents: Sequence[Incident]) -> str:
    """Write a line for each incident of a run."""
    rows = [_HEADS, *(_line_of(incident) for incident in incidents)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _line_of(incident: Incident) -> tuple[str, ...]:
    worst = next(iter(incident.rows), None)
    told = "-" if worst is None or worst.loss is None else f"{describe_examples(worst)}, loss {worst.loss:.4g}"
    count = len(incident.rows) + incident.left_out
    return str(incident.step), incident.stage, incident.by or "-", str(count), str(len(incident.standing_out)), told


def incident_text(incident: Incident, *, most: int = 20, width: int = 100) -> str:
    """Write what happened and the rows, the worst first; those that stand out have a star."""
    head = f"step {incident.step}, stage {incident.stage!r}, noticed by {incident.by or 'a user'}: {incident.reason}"
    lines = [head, incident.summary()]
    if incident.problem is not None:
        lines.append(f"some rows could not be measured alone: {incident.problem}")
    when = "before" if incident.before else "after"
    lines.append(f"rows measured alone with the weights from {when} the update, in evaluation mode:")
    lines += ["", *_rows(incident.rows[:most], width)]
    if (hidden := len(incident.rows) + incident.left_out - most) > 0:
        lines.append(f"  and {hidden} more (--rows {most + hidden})")
    return "\n".join(lines)


def _rows(rows: Sequence[IncidentRow], width: int) -> Iterator[str]:
    cells = [
        (
            "*" if row.stands_out else " ",
            "-" if row.loss is None else f"{row.loss:.4g}",
            str(row.rank),
            f"{row.micro_batch}.{row.row}",
            str(row.tokens),
            shorten(describe_examples(row), 40),
        )
        for row in rows
    ]
    table = [(" ", "loss", "rank", "batch.row", "tokens", "where"), *cells]
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    for cell, text in zip(table, ["text", *(row.text for row in rows)], strict=True):
        line = "  ".join(one.ljust(w) for one, w in zip(cell, widths, strict=True))
        shown = "" if text is None else shorten(" ".join(text.split()), max(width - len(line) - 2, 20))
        yield f"{line}  {shown}".rstrip()


def replay_text(replay: Replay) -> str:
    """Write the loss and the gradient of the update with and without its worst rows."""
    rows = [("", "loss", "gradient norm", "of the row alone"), ("the update", *_numbers(replay.loss, replay.grad_norm))]
    for one in replay.rows:
        told = f"without {shorten(describe_examples(one.row), 60)}"
        rows.append((told, *_numbers(one.loss_without, one.grad_norm_without, one.grad_norm)))
    if replay.loss_without is not None:
        rows.append(("without all rows that stand out", *_numbers(replay.loss_without, replay.grad_norm_without)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"  ({note})" for note in replay.notes]
    return "\n".join([f"replayed with {replay.weights}", *notes, "", *lines])


def _numbers(loss: float, norm: float | None, alone: float | None = None) -> tuple[str, str, str]:
    return f"{loss:.4g}", "" if norm is None else f"{norm:.4g}", "" if alone is None else f"{alone:.4g}"
