"""What a distillation step costs, compared with its bound: a plain fine-tuning step plus the teacher's forward pass, by
hand.

The arms of hf_stages and of other libraries do the same step on the same models (BERT classifier, Llama; 3 blocks learn
from 6), rows and optimizer. Each arm is a process of its own. They take turns of a few steps, and a ratio compares
times of one round. The first step of a turn finds another arm's data in the caches, so it does not count; nor does the
first round.

HF_STAGES_PEERS_PYTHON names other Pythons (separated like PATH) in which to look for TextBrewer, nvidia-modelopt, TRL
and DistillKit. A Python with another torch or transformers has its own bound. A library that is found nowhere is left
out with a notice. ``again`` measures half of the bound against itself: no ratio is more exact than that one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import IO, Any

from benchmarks._ours import ARMS as OURS
from benchmarks._peers import ARMS as PEERS
from benchmarks._peers import PACKAGES
from benchmarks._turns import Player
from benchmarks.common import say, spread

BOUND = ("bound_student", "bound_teacher")
AGAIN = "bound_student again"
STUDENT_ALONE = (AGAIN, "ours_cached")
"""Arms that are compared with plain fine-tuning, because no teacher runs in them."""
_BELOW = ("torch", "transformers")
TASKS = {
    "bert": ("textbrewer_logit", "textbrewer_hidden_attention", *OURS),
    "llama": ("modelopt_logit", "trl_gkd_logit", "distillkit_logit", "ours_logit"),
}
FIND = """
import importlib.util, json, sys
from importlib.metadata import packages_distributions, version
def find(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
owner = packages_distributions()
def versions(name):
    return " ".join(f"{d} {version(d)}" for d in sorted(set(owner[name.split(".")[0]])))
print(json.dumps({name: versions(name) for name in sys.argv[1:] if find(name)}))
"""


class Peers:
    """Finds where each arm of another library can run: the first Python that has its package."""

    def __init__(self) -> None:
        self.python: dict[str, str] = {}
        self.version: dict[str, str] = {}
        self.bound: dict[str, str] = {}
        """Map each Python to the first one with the same torch and transformers, whose bound it shares."""
        names = sorted({*PACKAGES.values(), *_BELOW})
        places = [sys.executable, *filter(None, os.environ.get("HF_STAGES_PEERS_PYTHON", "").split(os.pathsep))]
        below: dict[tuple[str, ...], str] = {}
        for python in places:
            answer = subprocess.run([python, "-c", FIND, *names], capture_output=True, text=True, check=True, cwd="/")
            has = json.loads(answer.stdout.splitlines()[-1])
            self.bound[python] = below.setdefault(tuple(has.get(name, "") for name in _BELOW), python)
            for arm, package in PACKAGES.items():
                if package in has:
                    self.version.setdefault(arm, has[package])
                    self.python.setdefault(arm, python)


def start(task: str, arm: str, python: str, options: argparse.Namespace, log: IO[str]) -> Player | None:
    player = Player(python, "benchmarks._distill_arm", [task, arm, str(options.batch), str(options.length)], log)
    answer = player.hear()
    if "ready" in answer:
        return player
    player.close()
    if "failed" in answer and arm not in PEERS:
        log.seek(0)
        raise SystemExit(f"{log.read()[-4000:]}\n{task} {arm} {answer}")
    print(f"left out: {task} {arm}: {answer}", flush=True)
    return None


def players(task: str, peers: Peers, options: argparse.Namespace, log: IO[str]) -> dict[Any, Player]:
    """Start a player for each (arm, Python), and one for the bound of each Python that takes part."""
    started: dict[Any, Player] = {}
    for arm in ("trainer", *TASKS[task]):
        if options.arms and arm not in options.arms:
            continue
        if arm in PEERS and arm not in peers.python:
            print(f"left out: {task} {arm}: no {PACKAGES[arm]} here or in HF_STAGES_PEERS_PYTHON", flush=True)
            continue
        python = peers.python.get(arm, sys.executable)
        player = start(task, arm, python, options, log)
        if player is not None:
            started[arm, python] = player
    for python in sorted({sys.executable} | {peers.bound[python] for _, python in started}):
        for arm in (*BOUND, AGAIN) if python == sys.executable else BOUND:
            started[arm, python] = start(task, arm.split()[0], python, options, log)  # type: ignore[assignment]
    return started


def turns(started: dict[Any, Player], options: argparse.Namespace) -> list[dict[Any, list[float]]]:
    """Play rounds: [seconds, CPU seconds] of each player's step. The order turns around, so nobody is always first."""
    rounds = []
    for number in range(options.rounds + 1):
        order = list(started.items())
        taken = {key: player.play(options.turn)[1:] for key, player in (order if number % 2 else order[::-1])}
        rounds.append({key: [statistics.median(times) for times in zip(*taken[key], strict=True)] for key in started})
    return rounds[1:]


def measure(task: str, peers: Peers, options: argparse.Namespace, log: IO[str]) -> dict[str, Any]:
    started = players(task, peers, options, log)
    try:
        rounds = turns(started, options)
    finally:
        for player in started.values():
            player.close()
    results = {}
    for arm, python in started:
        if arm not in BOUND:
            halves = [(half, peers.bound[python]) for half in (BOUND[:1] if arm in STUDENT_ALONE else BOUND)]
            results[arm] = compared((arm, python), halves, rounds)
            print(f"{task:5} {arm:27} {results[arm]}", flush=True)
    return results


def compared(key: Any, halves: list[Any], rounds: list[dict[Any, list[float]]]) -> dict[str, Any]:
    """Compare an arm with the sum of the halves: by the clock (by rounds, and by the least of all) and in CPU time."""
    steps = [r[key] for r in rounds]
    bounds = [[sum(kind) for kind in zip(*(r[half] for half in halves), strict=True)] for r in rounds]
    ratios = [[a / b for a, b in zip(s, bound, strict=True)] for s, bound in zip(steps, bounds, strict=True)]
    least, least_bound = min(wall for wall, _ in steps), sum(min(r[half][0] for r in rounds) for half in halves)
    return {
        "step_ms": _ms(statistics.median(wall for wall, _ in steps)),
        "bound_ms": _ms(statistics.median(wall for wall, _ in bounds)),
        "least_ms": _ms(least),
        "least_bound_ms": _ms(least_bound),
        "to_bound": _spread(wall for wall, _ in ratios),
        "least_to_least": round(least / least_bound, 3),
        "cpu_to_bound": _spread(cpu for _, cpu in ratios),
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 1)


def _spread(values: Iterable[float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in spread(list(values)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--turn", type=int, default=3, help="steps in a turn")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="*", help="these alone, and the bound")
    options = parser.parse_args()
    peers = Peers()
    with tempfile.TemporaryFile("w+") as log:
        results = {task: measure(task, peers, options, log) for task in options.tasks}
    say(
        "distill_step",
        batch=options.batch,
        length=options.length,
        peers=peers.version,
        **results,
    )


if __name__ == "__main__":
    main()
