"""The commands that train several short or whole runs to compare them: ``versus`` and ``probe-lr``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

_OK, _STOPPED, _SIGNALLED = 0, 3, 128
_LR = ("integral", "peak")


class Mistake(Exception):
    """A mistake of the user's; its cause says which."""


def add_parsers(commands: Any, recipe: argparse.ArgumentParser, prepare: Callable[..., Any]) -> None:
    """Both commands; ``prepare(options)`` loads a recipe's data."""
    versus = commands.add_parser(
        "versus",
        parents=[recipe],
        help="is staged better than joint? train both with the same weights, updates, examples and LR budget, over seeds",
        description="Derive from a staged recipe the joint one (one stage on all its sources) and train both over several seeds: loss of "
        "every domain, the mixture's, task metrics, training time, mean and spread, and which claim that supports. Finished arms are "
        "skipped, a cut one goes on.",
        epilog="e.g. hf-stages versus run.yaml --seeds 0 1 2 --arms joint replay --save versus.html",
    )
    versus.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="0 1 2 if left out")
    versus.add_argument(
        "--arms",
        nargs="+",
        default=["joint"],
        choices=["joint", "replay", "annealed"],
        help="besides the staged one: joint; replay, earlier sources within later stages; annealed, joint with more of the last "
        "source in the last 20%% of the updates (joint if left out)",
    )
    versus.add_argument("--stages", nargs="+", metavar="NAME", help="these alone, which follow one another")
    versus.add_argument(
        "--lr",
        default="integral",
        help="of the joint and the annealed arm: integral (default) scales the first stage's schedule until its sum over all updates "
        "is the staged run's; peak keeps its peak; a number is the peak",
    )
    versus.add_argument("--replay", type=float, default=0.05, metavar="SHARE", help="of the replay arm (0.05)")
    versus.add_argument(
        "--weights", nargs="+", metavar="DOMAIN=W", help="of the mixture loss (the staged run's tokens)"
    )
    _where(versus, "versus")
    versus.set_defaults(command=lambda options: _guarded(_versus, options, prepare))
    _probe_parser(commands, recipe, prepare)


def _probe_parser(commands: Any, recipe: argparse.ArgumentParser, prepare: Callable[..., Any]) -> None:
    probe = commands.add_parser(
        "probe-lr",
        parents=[recipe],
        help="which learning rate of a stage gains most within a forgetting budget: short trials from its boundary",
        description="From the boundary before a stage (trained up to there first, where it is not in output_dir), run short trials over "
        "learning rates and shares of replay. Shows the loss on what the stage brings and on what was learned before, and picks the "
        "largest gain within the budget. Trials lie in output_dir/probe-STAGE; finished ones are skipped.",
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
        help="train the pick over all of the stage's updates; one that leaves the budget there gives way to the next best",
    )
    _shown(probe)
    probe.set_defaults(command=lambda options: _guarded(_probe_lr, options, prepare))


def _where(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument("--out", metavar="DIR", help=f"where to train (output_dir/{folder})")
    _shown(parser)


def _shown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save", metavar="FILE", help="also as one HTML page (x.html) or picture (x.svg)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")


def _guarded(command: Callable[..., str], options: argparse.Namespace, prepare: Callable[..., Any]) -> int:
    from hf_stages.commands.stop_signals import StopOnSignal
    from hf_stages.core.stops import RunInterrupted, StageStopped

    held: list[StopOnSignal] = []

    def guard(trainer: Any) -> StopOnSignal:
        held.append(StopOnSignal(trainer.request_stop))
        return held[-1]

    try:
        with contextlib.redirect_stdout(sys.stderr):  # where trainers print their logs
            text = command(options, prepare, guard)
        if os.environ.get("RANK", "0") == "0":
            print(text)
    except StageStopped as stopped:
        print(f"hf-stages: {stopped}", file=sys.stderr)
        return _STOPPED
    except (ValueError, ImportError) as error:
        raise Mistake from error
    except RunInterrupted as cut:
        print(f"hf-stages: {cut}\nThe same command goes on with it.", file=sys.stderr)
        return _SIGNALLED + (held[-1].received or 2)
    if options.save:
        print(f"saved: {options.save}", file=sys.stderr)
    return _OK


def _versus(options: argparse.Namespace, prepare: Callable[..., Any], guard: Any) -> str:
    from hf_stages.reports.arms import compare
    from hf_stages.reports.pages.versus_page import check_suffix, save_versus
    from hf_stages.reports.tables.versus_table import versus_dict, versus_table

    weights = None if options.weights is None else _pairs(options.weights)
    if options.save:
        check_suffix(options.save)
    prepared = prepare(options)
    from hf_stages.commands.arm_runs import Trainings, run_versus
    from hf_stages.commands.arms import arms_of

    prepared.plan()  # all that a run of the recipe itself would refuse
    lr = options.lr if options.lr in _LR else _number(options.lr, "--lr", "integral, peak or a number")
    arms = arms_of(
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


def _probe_lr(options: argparse.Namespace, prepare: Callable[..., Any], guard: Any) -> str:
    from hf_stages.reports.pages.probe_page import save_probe
    from hf_stages.reports.pages.versus_page import check_suffix
    from hf_stages.reports.tables.probe_table import probe_dict, probe_table
    from hf_stages.reports.trials import Trials, parse_budget, read_trial

    budget = parse_budget(options.budget)
    if options.save:
        check_suffix(options.save)
    prepared = prepare(options)
    from hf_stages.commands.arm_runs import Trainings
    from hf_stages.commands.lr_trials import probe_of, run_probe

    prepared.plan()
    given = {"rates": options.rates, "replays": options.replay, "steps": options.steps, "share": options.share}
    probe = probe_of(prepared, options.stage, **given)
    trainings = Trainings(prepared, guard)
    each = tuple(read_trial(folder) for folder in run_probe(trainings, probe))
    same = {key: getattr(probe, key) for key in ("stage", "steps", "whole", "declared", "new", "earlier", "resumes_to")}
    trials = Trials(**same, budget=budget, tried=each)
    while options.confirm and probe.steps < probe.whole and (best := trials.next_to_confirm) is not None:
        (folder,) = run_probe(trainings, probe.whole_of(best.rate, best.replay))
        trials = replace(trials, confirmed=(*trials.confirmed, read_trial(folder)))
    if options.save:
        save_probe(trials, options.save)
    return json.dumps(probe_dict(trials), indent=2) if options.json else probe_table(trials)


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
