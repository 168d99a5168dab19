"""``hf-stages report``: what a run did, from its folder alone."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents


def add_parser(commands: Any, parents: Parents) -> None:
    report = commands.add_parser(
        "report",
        parents=[parents.shared],
        help="what a run did: stages, every domain after every stage, forgetting, decisions",
        description="Show a run from its folder alone, finished or not: no data and no weights are read. Losses are "
        "over all tokens of each named evaluation set; + is the rise since the best.",
        epilog="e.g. hf-stages report out --save report.html",
    )
    report.add_argument("out", metavar="OUT", help="the run's output_dir")
    report.add_argument("--save", metavar="FILE", help="also as one HTML page (report.html) or picture (report.svg)")
    report.add_argument("--json", action="store_true", help="print the stage x domain matrix as JSON instead")
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from hf_stages.reports.domain_matrix import domain_matrix
    from hf_stages.reports.pages.report_page import save_report
    from hf_stages.reports.run_folder import read_run
    from hf_stages.reports.run_report import run_report

    try:
        run = read_run(options.out)
        print(json.dumps(domain_matrix(options.out), indent=2) if options.json else run_report(run))
        if options.save:
            save_report(run, options.save)
            print(f"saved: {options.save}", file=sys.stderr)
    except (ValueError, OSError) as error:
        raise Mistake from error
    return OK
