"""``hf-stages plan``: what a recipe will do, without loading weights."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents, prepare_recipe, say_once


def add_parser(commands: Any, parents: Parents) -> None:
    plan = commands.add_parser("plan", parents=[parents.recipe], help="show what a recipe will do; loads no weights")
    plan.add_argument("--draw", metavar="PLAN.png", help="draw it as well (png, svg or pdf)")
    plan.add_argument("--probe", action="store_true", help="time a few updates with random weights to estimate seconds")
    plan.add_argument("--json", action="store_true", help="print JSON instead of the table")
    plan.add_argument(
        "--batches", action="store_true", help="show what a hundred updates of each stage hold, by source"
    )
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    try:
        prepared = prepare_recipe(options)
        plan, skeleton = prepared.plan(), prepared.skeleton()
        shapes, initial = _dry(plan, skeleton)
    except (ValueError, ImportError) as error:
        raise Mistake from error
    from hf_stages.planning.unused_args import unused_args
    from hf_stages.reports.curriculum_text import batches_of, batches_text
    from hf_stages.reports.tables.plan_table import plan_dict, plan_table

    for unused in unused_args(prepared.args, prepared.recipe):
        say_once(f"note: {unused}", file=sys.stderr)
    seconds = None
    if options.probe:
        from hf_stages.commands.time_estimate import estimate_seconds

        seconds = estimate_seconds(plan, prepared)
    if options.json:
        found = plan_dict(plan, shapes, seconds, initial)
        if options.batches:
            for stage, planned in zip(found["stages"], plan.stages, strict=True):
                stage["batches"] = batches_of(planned)
        print(json.dumps(found, indent=2))
    else:
        print(plan_table(plan, model=skeleton, data=prepared.data, seconds=seconds))
        if options.batches:
            print("\n" + batches_text(plan))
    if options.draw:
        from hf_stages.reports.pages.plan_picture import draw_plan

        try:
            draw_plan(plan, options.draw, data=prepared.data)
        except (ValueError, ImportError, OSError) as error:  # an unknown suffix, no matplotlib, no such folder
            raise Mistake from error
        print(f"drawn: {options.draw}", file=sys.stderr)
    return OK


def _dry(plan: Any, skeleton: Any) -> Any:
    from hf_stages.core.stage import Recipe
    from hf_stages.planning.model_shapes import shape_of, stage_shapes

    return stage_shapes(Recipe([planned.stage for planned in plan.stages]), skeleton), shape_of(skeleton)
