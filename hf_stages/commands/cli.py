"""The ``hf-stages`` command: its parser, and the way to the command that is asked for.

Each command is a file here, with its options and what it does. Nothing heavy is imported before a command needs it:
``--help`` answers at once.

Exit codes: 0 done; 1 failed while running; 2 a bad recipe or command line; 3 a gate (``Expect``) stopped the run before
the next stage; 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from hf_stages.commands import (
    bench,
    cache_teacher,
    compare,
    doctor,
    incident,
    new,
    pack,
    plan,
    probe_lr,
    recipe,
    report,
    run,
    versus,
)
from hf_stages.commands.command_line import BAD, FAILED, SIGINT, SIGNALLED, Mistake, make_parents
from hf_stages.core.version import __version__

_COMMANDS = (new, plan, run, recipe, cache_teacher, pack, bench, report, incident, compare, versus, probe_lr, doctor)
"""In the order in which ``--help`` lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as done:  # argparse has said what it had to say
        return int(done.code or 0)
    try:
        return options.command(options)
    except Mistake as bad:
        if options.debug:
            traceback.print_exception(bad.__cause__)
        print(f"hf-stages: {bad.__cause__}", file=sys.stderr)
        return BAD
    except KeyboardInterrupt:
        print("hf-stages: interrupted", file=sys.stderr)
        return SIGNALLED + SIGINT
    except Exception:
        traceback.print_exc()
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-stages",
        description="Staged training inside the Hugging Face Trainer: a run is a declared sequence of stages.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad recipe or usage, 3 stopped by a gate, 130/143 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"hf-stages {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parents = make_parents()
    for command in _COMMANDS:
        command.add_parser(commands, parents)
    return parser
