"""Reports everything that a run's folder holds, as text."""

from __future__ import annotations

from hf_stages.core.sealed_folders import read_json
from hf_stages.reports.decisions import decisions
from hf_stages.reports.run_folder import ReadRun
from hf_stages.reports.tables.bench_table import bench_table
from hf_stages.reports.tables.depth_table import depth_table
from hf_stages.reports.tables.domain_table import domain_table
from hf_stages.reports.tables.result_table import stages_table
from hf_stages.reports.tables.shares_table import shares_table

_BENCH = "bench.json"


def run_report(run: ReadRun) -> str:
    """Report stages, domains, depths, shares of sources, decisions, sizes and speeds, as far as they are there."""
    parts = [stages_table(run), *[f"! {problem}" for problem in run.problems], domain_table(run)]
    parts += [table for table in (depth_table(run), shares_table(run)) if table]
    if decided := decisions(run.ledger):
        parts.append(
            "Decisions and notices\n" + "\n".join(f"  step {step}, {stage}: {text}" for step, stage, text in decided)
        )
    return "\n\n".join([*parts, *bench_tables(run)])


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
