"""``hf-stages versus``: train a staged recipe and the joint one over several seeds, and compare them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_stages.commands.command_line import Parents, prepare_recipe
from hf_stages.commands.compared_runs import add_output_options, run_compared

_LR = ("integral", "peak")


def add_parser(commands: Any, parents: Parents) -> None:
    versus = commands.add_parser(
        "versus",
        parents=[parents.recipe],
        help="is staged better than joint? train both with the same weights, updates, examples and LR budget, over "
        "seeds",
        description="Derive from a staged recipe the joint one (one stage on all its sources) and train both over "
        "several seeds: loss of every domain, the mixture's, task metrics, training time, mean and "
        "spread, and which claim that supports. Finished arms are skipped, a cut one goes on.",
        epilog="e.g. hf-stages versus run.yaml --seeds 0 1 2 --arms joint replay --save versus.html",
    )
    versus.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="0 1 2 if left out")
    versus.add_argument(
        "--arms",
        nargs="+",
        default=["joint"],
        choices=["joint", "replay", "annealed"],
        help="besides the staged one: joint; replay, earlier sources within later stages; annealed, joint with more of "
        "the last source in the last 20%% of the updates (joint if left out)",
    )
    versus.add_argument("--stages", nargs="+", metavar="NAME", help="these alone, which follow one another")
    versus.add_argument(
        "--lr",
        default="integral",
        help="of the joint and the annealed arm: integral (default) scales the first stage's schedule until its sum "
        "over all updates is the staged run's; peak keeps its peak; a number is the peak",
    )
    versus.add_argument("--replay", type=float, default=0.05, metavar="SHARE", help="of the replay arm (0.05)")
    versus.add_argument(
        "--weights", nargs="+", metavar="DOMAIN=W", help="of the mixture loss (the staged run's tokens)"
    )
    versus.add_argument("--out", metavar="DIR", help="where to train (output_dir/versus)")
    add_output_options(versus)
    versus.set_defaults(command=lambda options: run_compared(_versus, options))


def _versus(options: argparse.Namespace, guard: Any) -> str:
    from hf_stages.reports.arms import compare
    from hf_stages.reports.pages.versus_page import check_suffix, save_versus
    from hf_stages.reports.tables.versus_table import versus_dict, versus_table

    weights = None if options.weights is None else _pairs(options.weights)
    if options.save:
        check_suffix(options.save)
    prepared = prepare_recipe(options)
    from hf_stages.commands.arm_runs import Trainings, run_versus
    from hf_stages.commands.arms import build_arms

    prepared.plan()  # all that a run of the recipe itself would refuse
    lr = options.lr if options.lr in _LR else _number(options.lr, "--lr", "integral, peak or a number")
    arms = build_arms(
        prepared.recipe, prepared.args, ["staged", *options.arms], stages=options.stages, lr=lr, replay=options.replay
    )
    if weights is not None and (unknown := [d for d in weights if d not in arms[0].recipe.eval_dataset]):
        raise ValueError(
            f"--weights: no domain is called {unknown[0]!r}; there are {', '.join(arms[0].recipe.eval_dataset)}"
        )
    out = Path(options.out) if options.out else Path(prepared.args.output_dir) / "versus"
    comparison = compare(run_versus(Trainings(prepared, guard), arms, options.seeds, out), weights)
    if options.save:
        save_versus(comparison, options.save)
    return json.dumps(versus_dict(comparison), indent=2) if options.json else versus_table(comparison)


def _pairs(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise ValueError(f"--weights: expected domain=weight, such as language=0.93 code=0.07, got {text!r}")
        found[name] = _number(value, f"--weights {name}", "a number")
    return found


def _number(text: str, where: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: expected {expected}, got {text!r}") from None
