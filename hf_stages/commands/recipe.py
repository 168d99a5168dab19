"""``hf-stages recipe``: print a ready recipe, or every key of a recipe."""

from __future__ import annotations

import argparse
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents


def add_parser(commands: Any, parents: Parents) -> None:
    ready = commands.add_parser(
        "recipe",
        parents=[parents.shared],
        help="print a ready recipe's stages as YAML, to edit: hf-stages recipe three_stage > mine.yaml",
        description="Print a ready recipe's stages as YAML, to edit. Without a name, list the ready recipes.",
        epilog="e.g. hf-stages recipe three_stage until='9 epochs' reduce=[2,4,6] logits='{use: LogitKL, temperature: "
        "2}'",
    )
    ready.add_argument("name", nargs="?", help="such as three_stage or multi_stage")
    ready.add_argument("settings", nargs="*", metavar="key=value", help="its arguments, as YAML")
    ready.add_argument("--reference", action="store_true", help="print every key of a recipe, as Markdown")
    ready.set_defaults(command=_ready)


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
        "# to run it, add: model, teacher, tokenizer, args: {output_dir: ..., warmup_steps: 0.05}, sources, "
        "train_dataset, eval_dataset"
    )
    print(recipes.dump(found), end="")
    return OK
