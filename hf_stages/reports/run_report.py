"""Reports everything that a run's folder holds, as text."""

from __future__ import annotations

from hf_stages.core.sealed_folders import read_json
from hf_stages.reports.run_folder import ReadRun
from hf_stages.reports.tables.bench_table import bench_table
from hf_stages.reports.tables.depth_table import depth_table
from hf_stages.reports.tables.domain_table import domain_table
from hf_stages.reports.tables.result_table import stages_table
from hf_stages.reports.tables.shares_table import shares_table

_BENCH = "bench.json"
_KINDS = ("alert", "cut_lr", "rollback", "replay", "stop", "notice")


def run_report(run: ReadRun) -> str:
    """Report stages, domains, depths, shares of sources, decisions, sizes and speeds, as far as they are there."""
    parts = [stages_table(run), *[f"! {problem}" for problem in run.problems], domain_table(run)]
    parts += [table for table in (depth_table(run), shares_table(run)) if table]
    if decisions := decisions_of(run):
        parts.append(
            "Decisions and notices\n" + "\n".join(f"  step {step}, {stage}: {text}" for step, stage, text in decisions)
        )
    return "\n\n".join([*parts, *bench_tables(run)])


def decisions_of(run: ReadRun) -> list[tuple[int, str, str]]:
    """Return (step, stage, words) of the ledger's entries, except for plain ends of stages."""
    shown = [entry for entry in run.ledger if entry["kind"] in _KINDS]
    return [
        (e["step"], e["stage"], f"{e['kind']}: {e['reason']}" + (f" [{e['by']}]" if e["by"] else "")) for e in shown
    ]


def bench_tables(run: ReadRun) -> list[str]:
    """Return the tables that ``hf-stages bench --save`` left in the stages' folders."""
    found = []
    for stage in run.stages:
        for place in (stage.folder, *sorted(stage.folder.parent.glob(f"{stage.folder.name}-exports/*"))):
            if (place / _BENCH).is_file():
                try:
                    found.append(bench_table(read_json(place / _BENCH, "a bench")))
                except (ValueError, KeyError, TypeError) as error:
                    found.append(f"! {place / _BENCH}: cannot be shown: {error}")
    return found
