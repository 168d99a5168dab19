"""The ``hf-stages`` command. Nothing heavy is imported before a command needs it: ``--help`` answers at once.

Exit codes: 0 done; 1 failed while running; 2 a bad recipe or command line; 3 a gate (``Expect``) stopped the run before
the next stage; 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from hf_stages.commands.compare import Mistake, add_parsers
from hf_stages.commands.new import add_new_parser
from hf_stages.core.version import __version__

OK, FAILED, BAD, STOPPED, SIGNALLED = 0, 1, 2, 3, 128
_SIGINT = 2


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
        return SIGNALLED + _SIGINT
    except Exception:
        traceback.print_exc()
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-stages",
        description="Staged training inside the Hugging Face Trainer: a run is a declared sequence of stages.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad recipe or usage, 3 stopped by Expect, 130/143 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"hf-stages {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks of bad recipes too")
    recipe = argparse.ArgumentParser(add_help=False, parents=[shared])
    recipe.add_argument("recipe", metavar="run.yaml", help="the recipe")
    recipe.add_argument("--trust-remote-code", action="store_true", help="let code named by the recipe run")

    add_new_parser(commands, shared)
    plan = commands.add_parser("plan", parents=[recipe], help="show what a recipe will do; loads no weights")
    plan.add_argument("--draw", metavar="PLAN.png", help="draw it as well (png, svg or pdf)")
    plan.add_argument("--probe", action="store_true", help="time a few updates with random weights to estimate seconds")
    plan.add_argument("--json", action="store_true", help="print JSON instead of the table")
    plan.add_argument(
        "--batches", action="store_true", help="show what a hundred updates of each stage hold, by source"
    )
    plan.set_defaults(command=_plan)

    run = commands.add_parser("run", parents=[recipe], help="run every stage of a recipe")
    run.add_argument("--resume", action="store_true", help="go on where the run was cut")
    run.add_argument("--output-dir", metavar="DIR", help="instead of the recipe's args.output_dir")
    run.set_defaults(command=_run)

    _ready_parser(commands, shared)
    cache = commands.add_parser(
        "cache-teacher", parents=[recipe], help="run a recipe's teacher once, keep what it says"
    )
    cache.add_argument(
        "--to", metavar="DIR", required=True, help="the cache; then: teacher: {use: CachedTeacher, folder: DIR}"
    )
    cache.add_argument("--k", type=int, help="logits to keep per position (all of them if left out)")
    cache.add_argument("--hidden", metavar="LAYER", nargs="*", default=[], help="hidden states to keep, such as 2 4")
    cache.add_argument("--no-logits", action="store_true", help="keep hidden states alone")
    cache.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    cache.add_argument("--batch-size", type=int, default=32)
    cache.set_defaults(command=_cache)

    _pack_parser(commands, shared)
    _bench_parser(commands, shared)
    _report_parser(commands, shared)
    add_parsers(commands, recipe, lambda options: _prepare(options, output_dir=None))
    doctor = commands.add_parser("doctor", parents=[shared], help="what this machine has and what is missing")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _ready_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    ready = commands.add_parser(
        "recipe",
        parents=[shared],
        help="print a ready recipe's stages as YAML, to edit: hf-stages recipe three_stage > mine.yaml",
        description="Print a ready recipe's stages as YAML, to edit. Without a name, list the ready recipes.",
        epilog="e.g. hf-stages recipe three_stage until='9 epochs' reduce=[2,4,6] logits='{use: LogitKL, temperature: 2}'",
    )
    ready.add_argument("name", nargs="?", help="such as three_stage or multi_stage")
    ready.add_argument("settings", nargs="*", metavar="key=value", help="its arguments, as YAML")
    ready.add_argument("--reference", action="store_true", help="print every key of a recipe, as Markdown")
    ready.set_defaults(command=_ready)


def _pack_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    pack = commands.add_parser(
        "pack",
        parents=[shared],
        help="write a stage's 1-bit and 2-bit layers as one and two bits: hf-stages pack out/04-binary-logits --to packed",
        description="Write a folder with the quantized layers of a stage really packed. It loads with from_pretrained after "
        "`import hf_stages`; with --portable in stock transformers.",
    )
    pack.add_argument("folder", metavar="STAGE", help="the folder of a finished stage")
    pack.add_argument("--to", metavar="DIR", required=True, help="where to")
    pack.add_argument("--portable", action="store_true", help="in the layout that stock transformers reads by itself")
    pack.add_argument(
        "--rest", default="float16", help="dtype of what is not packed: float16 (default), bfloat16, float32"
    )
    pack.add_argument("--embeddings", choices=["int8", "keep"], default="int8", help="a vocabulary in full precision")
    pack.add_argument("--overwrite", action="store_true", help="replace DIR if it is there")
    pack.add_argument("--trust-remote-code", action="store_true", help="let code named by the stage run")
    pack.add_argument("--json", action="store_true", help="print JSON")
    pack.set_defaults(command=_pack)


def _report_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    report = commands.add_parser(
        "report",
        parents=[shared],
        help="what a run did: stages, every domain after every stage, forgetting, decisions",
        description="Show a run from its folder alone, finished or not: no data and no weights are read. Losses are over all tokens "
        "of each named evaluation set; + is the rise since the best.",
        epilog="e.g. hf-stages report out --save report.html",
    )
    report.add_argument("out", metavar="OUT", help="the run's output_dir")
    report.add_argument("--save", metavar="FILE", help="also as one HTML page (report.html) or picture (report.svg)")
    report.add_argument("--json", action="store_true", help="print the stage x domain matrix as JSON instead")
    report.set_defaults(command=_report)


def _bench_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    bench = commands.add_parser(
        "bench",
        parents=[shared],
        help="size and speed of a packed model (or any model's folder) on this machine",
        description="Size and speed on this machine: a packed folder (or a stage's, or any model's) beside the same model in "
        "fp32 and bf16, torch's dynamic int8 and bitsandbytes. All take turns; best of the turns, median in brackets.",
    )
    bench.add_argument("folders", nargs="+", metavar="FOLDER", help="what pack, a stage or save_pretrained wrote")
    bench.add_argument("--rows", nargs="+", metavar="ROWSxTOKENS", help="what to time (1x16 1x128 32x128)")
    bench.add_argument("--ways", nargs="+", metavar="WAY", help="of: own packed fp32 bf16 int8 bnb8 bnb4 (all)")
    bench.add_argument("--tokens", type=int, default=16, help="to decode, where the model is a causal one (16)")
    bench.add_argument("--repeats", type=int, default=7, help="turns of each way in each shape (7)")
    bench.add_argument("--seconds", type=float, default=20.0, help="after which a way takes no further turn (20)")
    bench.add_argument("--threads", type=int, help="torch's own number if left out")
    bench.add_argument(
        "--save", action="store_true", help="write bench.json and a section of the model card into each folder"
    )
    bench.add_argument("--trust-remote-code", action="store_true", help="let code named by the folder run")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(command=_bench)


def _plan(options: argparse.Namespace) -> int:
    try:
        prepared = _prepare(options, output_dir=None)
        plan, skeleton = prepared.plan(), prepared.skeleton()
        shapes, initial = _dry(plan, skeleton)
    except (ValueError, ImportError) as error:
        raise Mistake from error
    from hf_stages.planning.unused_args import unused_args
    from hf_stages.reports.curriculum_text import batches_of, batches_text
    from hf_stages.reports.tables.plan_table import plan_dict, plan_table

    for unused in unused_args(prepared.args, prepared.recipe):
        _say(f"note: {unused}", file=sys.stderr)
    seconds = None
    if options.probe:
        from hf_stages.commands.time_estimate import probe_seconds

        seconds = probe_seconds(plan, prepared)
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


def _run(options: argparse.Namespace) -> int:
    try:
        prepared = _prepare(options, output_dir=options.output_dir)
        from hf_stages.reports.tables.plan_table import plan_table

        plan, skeleton = prepared.plan(), prepared.skeleton()
        table = plan_table(plan, model=skeleton, data=prepared.data)
        _say(table + "\n")
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
            code = SIGNALLED + (stop.received or _SIGINT)
        except Exception as error:
            if _refused(error, trainer):
                raise Mistake from error
            traceback.print_exc()
            code = FAILED
    _say_result(prepared.args.output_dir)
    if code != OK:
        _say(f"Resume with: {resume_command(options)}", file=sys.stderr)
    return code


def _refused(error: Exception, trainer: Any) -> bool:
    """Whether hf_stages itself refused before the first update, as where ``--resume`` meets another recipe's folder."""
    if not isinstance(error, ValueError) or trainer.state.global_step > 0:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("hf_stages.")


def resume_command(options: argparse.Namespace) -> str:
    """The command that goes on with this run, ready to paste."""
    words = ["hf-stages", "run", options.recipe, "--resume"]
    words += ["--output-dir", options.output_dir] if options.output_dir else []
    words += ["--trust-remote-code"] if options.trust_remote_code else []
    return shlex.join(words)


def _ready(options: argparse.Namespace) -> int:
    from hf_stages.commands.reference import recipe_reference
    from hf_stages.core.registry import list_parts
    from hf_stages.core.source_sketch import module_doc
    from hf_stages.recipes import files as recipes

    if options.reference:
        print(recipe_reference(), end="")
        return OK
    if options.name is None:
        for module, name in list_parts("recipes"):
            print(f"{name:<12} {module_doc(module)}")
        return OK
    try:
        for setting in options.settings:
            if "=" not in setting:
                raise ValueError(f"{setting}: expected key=value, such as until='6 epochs'")
        lines = [f"  {setting.replace('=', ': ', 1)}" for setting in options.settings]
        found = recipes.loads("\n".join(["stages:", f"  use: {options.name}", *lines, ""]))
    except ValueError as error:
        raise Mistake from error
    print(
        "# to run it, add: model, teacher, tokenizer, args: {output_dir: ..., warmup_steps: 0.05}, sources, train_dataset, eval_dataset"
    )
    print(recipes.dump(found), end="")
    return OK


def _cache(options: argparse.Namespace) -> int:
    try:
        layers = [int(layer) if layer.lstrip("-").isdecimal() else layer for layer in options.hidden]
        given = {"k": options.k, "hidden": layers, "logits": not options.no_logits, "dtype": options.dtype}
        cached = _prepare(options, output_dir=None).cache_teacher(options.to, batch_size=options.batch_size, **given)
    except (ValueError, ImportError) as error:
        raise Mistake from error
    _say(
        f"{cached.folder}: {cached.summary()}\nIn the recipe: teacher: {{use: CachedTeacher, folder: {cached.folder}}}"
    )
    return OK


def _pack(options: argparse.Namespace) -> int:
    from hf_stages.packing.pack_folder import pack

    try:
        size = pack(
            options.folder,
            options.to,
            rest=options.rest,
            embeddings=None if options.embeddings == "keep" else options.embeddings,
            portable=options.portable,
            overwrite=options.overwrite,
            trust_remote_code=options.trust_remote_code,
        )
    except (ValueError, ImportError) as error:
        raise Mistake from error
    print(json.dumps(size.to_dict(), indent=2) if options.json else f"{options.to}\n{size}")
    return OK


def _bench(options: argparse.Namespace) -> int:
    from hf_stages.commands.bench import SHAPES, bench
    from hf_stages.reports.tables.bench_table import bench_table

    same = ("ways", "tokens", "repeats", "seconds", "threads", "save", "trust_remote_code")
    given = {name: getattr(options, name) for name in same}
    found = []
    for folder in options.folders:
        try:
            found.append(bench(folder, shapes=options.rows or SHAPES, **given))
        except (ValueError, ImportError) as error:
            raise Mistake from error
        if not options.json:
            print(bench_table(found[-1]) + "\n", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))
    return OK


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


def _doctor(options: argparse.Namespace) -> int:
    from hf_stages.commands.doctor import examine, render

    found = examine()
    print(json.dumps(found, indent=2) if options.json else render(found))
    return OK if found["ok"] else FAILED


def _prepare(options: argparse.Namespace, *, output_dir: str | None) -> Any:
    from hf_stages.recipes import files as recipes

    recipe = recipes.load(options.recipe, trust_remote_code=options.trust_remote_code)
    from hf_stages.training.from_recipe import prepare  # seconds of imports, once the recipe is known to be one

    return prepare(recipe, trust_remote_code=options.trust_remote_code, output_dir=output_dir)


def _dry(plan: Any, skeleton: Any) -> Any:
    from hf_stages.core.stage import Recipe
    from hf_stages.planning.model_shapes import dry_run, shape_of

    return dry_run(Recipe([planned.stage for planned in plan.stages]), skeleton), shape_of(skeleton)


def _say_result(out: str) -> None:
    from hf_stages.reports.tables.result_table import result_table

    try:
        _say("\n" + result_table(out))
    except ValueError as error:  # cut before its first word was on disk
        print(f"hf-stages: no results to show: {error}", file=sys.stderr)


def _say(text: str, file: Any = None) -> None:
    """Print once, not on every rank."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)
