"""``hf-stages compare``: several runs in one picture, from their folders alone."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents


def add_parser(commands: Any, parents: Parents) -> None:
    compare = commands.add_parser(
        "compare",
        parents=[parents.shared],
        help="runs side by side in three panels: loss, hidden-state correlation, validation perplexity",
        description="Show runs side by side from their logs alone, finished or not: training loss, correlation of the "
        "hidden states, and validation perplexity at each recurrence against the optimizer step, log-log. Alerts, "
        "skipped updates, rate cuts, rollbacks and beginnings of stages are marked. Runs of a plain Trainer compare, "
        "too (trainer_state.json, or the folder that holds it or its checkpoints).",
        epilog="e.g. hf-stages compare good=out/good bad=out/bad -o panels.png",
    )
    compare.add_argument(
        "runs", metavar="RUN", nargs="+", help="an output_dir or trainer_state.json; NAME=PATH names it"
    )
    compare.add_argument(
        "-o", "--output", metavar="FILE", help="a page (panels.html) or picture (panels.svg, .png, .pdf) to write"
    )
    compare.add_argument(
        "--eval-set", metavar="NAME", help="whose perplexity is shown (one that most runs have if left out)"
    )
    compare.add_argument("--json", action="store_true", help="print all points as JSON instead of the table")
    compare.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from hf_stages.reports.panels.page import check_target, save_panels
    from hf_stages.reports.panels.read_curves import read_all_curves
    from hf_stages.reports.tables.health_table import health_dict, health_table

    try:
        if options.output:
            check_target(options.output)
        runs = read_all_curves(options.runs)
        found = health_dict if options.json else health_table
        shown = found(runs, options.eval_set)
        print(json.dumps(shown, indent=2) if options.json else shown)
        if options.output:
            save_panels(runs, options.output, eval_set=options.eval_set)
            print(f"saved: {options.output}", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        raise Mistake from error
    return OK
