"""``hf-stages probe-lr``: which learning rate of a stage gains most within a forgetting budget."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from hf_stages.commands.command_line import Parents, prepare_recipe
from hf_stages.commands.compared_runs import add_output_options, run_compared


def add_parser(commands: Any, parents: Parents) -> None:
    probe = commands.add_parser(
        "probe-lr",
        parents=[parents.recipe],
        help="which learning rate of a stage gains most within a forgetting budget: short trials from its boundary",
        description="From the boundary before a stage (trained up to there first, where it is not in output_dir), "
        "run short trials over learning rates and shares of replay. Shows the loss on what the stage "
        "brings and on what was learned before, and picks the largest gain within the budget. Trials lie "
        "in output_dir/probe-STAGE; finished ones are skipped.",
        epilog="e.g. hf-stages probe-lr run.yaml --stage code --rates 1e-4 3e-4 1e-3 --replay 0 0.05 --save probe.svg",
    )
    probe.add_argument("--stage", required=True, metavar="NAME", help="the stage to try; not the first")
    probe.add_argument(
        "--rates", nargs="+", type=float, metavar="LR", help="1/8, 1/4, 1/2, 1 and 2 times the declared one if left out"
    )
    probe.add_argument(
        "--replay", nargs="+", type=float, default=[0.0], metavar="SHARE", help="shares of earlier data to try (0)"
    )
    probe.add_argument("--steps", type=int, help="updates of a trial")
    probe.add_argument("--share", type=float, help="or their share of the stage (0.1, of 20 updates at least)")
    probe.add_argument("--budget", default="5%", help="rise of an earlier domain's loss that is allowed (5%%)")
    probe.add_argument(
        "--confirm",
        action="store_true",
        help="train the pick over all of the stage's updates; one that leaves the budget there gives way to the next "
        "best",
    )
    add_output_options(probe)
    probe.set_defaults(command=lambda options: run_compared(_probe_lr, options))


def _probe_lr(options: argparse.Namespace, guard: Any) -> str:
    from hf_stages.reports.pages.probe_page import save_probe
    from hf_stages.reports.pages.versus_page import check_suffix
    from hf_stages.reports.tables.probe_table import probe_dict, probe_table
    from hf_stages.reports.trials import Trials, parse_budget, read_trial

    budget = parse_budget(options.budget)
    if options.save:
        check_suffix(options.save)
    prepared = prepare_recipe(options)
    from hf_stages.commands.arm_runs import Trainings
    from hf_stages.commands.lr_trials import plan_trials, run_trials

    prepared.plan()
    given = {"rates": options.rates, "replays": options.replay, "steps": options.steps, "share": options.share}
    probe = plan_trials(prepared, options.stage, **given)
    trainings = Trainings(prepared, guard)
    each = tuple(read_trial(folder) for folder in run_trials(trainings, probe))
    same = {key: getattr(probe, key) for key in ("stage", "steps", "whole", "declared", "new", "earlier", "resumes_to")}
    trials = Trials(**same, budget=budget, tried=each)
    while options.confirm and probe.steps < probe.whole and (best := trials.next_to_confirm) is not None:
        (folder,) = run_trials(trainings, probe.whole_stage(best.rate, best.replay))
        trials = replace(trials, confirmed=(*trials.confirmed, read_trial(folder)))
    if options.save:
        save_probe(trials, options.save)
    return json.dumps(probe_dict(trials), indent=2) if options.json else probe_table(trials)
