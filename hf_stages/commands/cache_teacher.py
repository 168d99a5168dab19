"""``hf-stages cache-teacher``: run a recipe's teacher once and keep its outputs."""

from __future__ import annotations

import argparse
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents, prepare_recipe, say_once


def add_parser(commands: Any, parents: Parents) -> None:
    cache = commands.add_parser(
        "cache-teacher", parents=[parents.recipe], help="run a recipe's teacher once, keep what it says"
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


def _cache(options: argparse.Namespace) -> int:
    try:
        layers = [int(layer) if layer.lstrip("-").isdecimal() else layer for layer in options.hidden]
        given = {"k": options.k, "hidden": layers, "logits": not options.no_logits, "dtype": options.dtype}
        cached = prepare_recipe(options).cache_teacher(options.to, batch_size=options.batch_size, **given)
    except (ValueError, ImportError) as error:
        raise Mistake from error
    say_once(
        f"{cached.folder}: {cached.summary()}\nIn the recipe: teacher: {{use: CachedTeacher, folder: {cached.folder}}}"
    )
    return OK
