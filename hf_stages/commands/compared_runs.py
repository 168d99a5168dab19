"""What ``hf-stages versus`` and ``hf-stages probe-lr`` share: both train several runs and compare them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from hf_stages.commands.command_line import OK, SIGINT, SIGNALLED, STOPPED, Mistake, say_once


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save", metavar="FILE", help="also as one HTML page (x.html) or picture (x.svg)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")


def run_compared(command: Callable[..., str], options: argparse.Namespace) -> int:
    """Run ``versus`` or ``probe-lr``, print its text, and stop its trainers in order where a signal asks for it."""
    from hf_stages.commands.stop_signals import StopOnSignal
    from hf_stages.core.stops import RunInterrupted, StageStopped

    held: list[StopOnSignal] = []

    def guard(trainer: Any) -> StopOnSignal:
        held.append(StopOnSignal(trainer.request_stop))
        return held[-1]

    try:
        with contextlib.redirect_stdout(sys.stderr):  # where trainers print their logs
            text = command(options, guard)
        say_once(text)
    except StageStopped as stopped:
        print(f"hf-stages: {stopped}", file=sys.stderr)
        return STOPPED
    except (ValueError, ImportError) as error:
        raise Mistake from error
    except RunInterrupted as cut:
        print(f"hf-stages: {cut}\nThe same command goes on with it.", file=sys.stderr)
        return SIGNALLED + (held[-1].received or SIGINT)
    if options.save:
        print(f"saved: {options.save}", file=sys.stderr)
    return OK
