"""``hf-stages run``: train every stage of a recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from typing import Any

from hf_stages.commands.command_line import (
    FAILED,
    OK,
    SIGINT,
    SIGNALLED,
    STOPPED,
    Mistake,
    Parents,
    prepare_recipe,
    say_once,
)


def add_parser(commands: Any, parents: Parents) -> None:
    run = commands.add_parser("run", parents=[parents.recipe], help="run every stage of a recipe")
    run.add_argument("--resume", action="store_true", help="go on where the run was cut")
    run.add_argument("--output-dir", metavar="DIR", help="instead of the recipe's args.output_dir")
    run.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        prepared = prepare_recipe(options, output_dir=options.output_dir)
        from hf_stages.reports.tables.plan_table import plan_table

        plan, skeleton = prepared.plan(), prepared.skeleton()
        table = plan_table(plan, model=skeleton, data=prepared.data)
        say_once(table + "\n")
        trainer = prepared.trainer()
    except (ValueError, ImportError) as error:
        raise Mistake from error
    return _train(options, prepared, trainer)


def _train(options: argparse.Namespace, prepared: Any, trainer: Any) -> int:
    from hf_stages.commands.stop_signals import StopOnSignal
    from hf_stages.core.stops import RunInterrupted, StageStopped

    code = OK
    with StopOnSignal(trainer.request_stop) as stop:
        try:
            trainer.train(resume_from_checkpoint=options.resume)
        except StageStopped as stopped:
            print(f"hf-stages: {stopped}", file=sys.stderr)
            code = STOPPED
        except (RunInterrupted, KeyboardInterrupt) as cut:
            print(f"hf-stages: {cut or 'interrupted'}", file=sys.stderr)
            code = SIGNALLED + (stop.received or SIGINT)
        except Exception as error:
            if _refused(error, trainer):
                raise Mistake from error
            traceback.print_exc()
            code = FAILED
    _say_result(prepared.args.output_dir)
    if code != OK:
        say_once(f"Resume with: {resume_command(options)}", file=sys.stderr)
    return code


def _refused(error: Exception, trainer: Any) -> bool:
    """Tell whether hf_stages refused before the first update, as where ``--resume`` meets another recipe's folder."""
    if not isinstance(error, ValueError) or trainer.state.global_step > 0:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("hf_stages.")


def resume_command(options: argparse.Namespace) -> str:
    """Return the command that resumes this run, ready to paste."""
    words = ["hf-stages", "run", options.recipe, "--resume"]
    words += ["--output-dir", options.output_dir] if options.output_dir else []
    words += ["--trust-remote-code"] if options.trust_remote_code else []
    return shlex.join(words)


def _say_result(out: str) -> None:
    from hf_stages.reports.tables.result_table import result_table

    try:
        say_once("\n" + result_table(out))
    except ValueError as error:  # cut before its first word was on disk
        print(f"hf-stages: no results to show: {error}", file=sys.stderr)
