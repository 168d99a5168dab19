"""What all commands share: exit codes, the error of a user's mistake, options, and how a recipe is prepared."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

OK, FAILED, BAD, STOPPED, SIGNALLED = 0, 1, 2, 3, 128
"""Exit codes: done, failed, bad recipe or command line, stopped by ``Expect``, and 128 plus a signal's number."""
SIGINT = 2


class Mistake(Exception):
    """A mistake of the user's; its cause says which."""


@dataclass(frozen=True)
class Parents:
    """Parsers whose options several commands take."""

    shared: argparse.ArgumentParser
    """Options of every command."""
    recipe: argparse.ArgumentParser
    """A recipe's path, and whether the code that it names may run."""


def make_parents() -> Parents:
    """Make the parsers anew, for one command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks of bad recipes too")
    recipe = argparse.ArgumentParser(add_help=False, parents=[shared])
    recipe.add_argument("recipe", metavar="run.yaml", help="the recipe")
    recipe.add_argument("--trust-remote-code", action="store_true", help="let code named by the recipe run")
    return Parents(shared, recipe)


def prepare_recipe(options: argparse.Namespace, *, output_dir: str | None = None) -> Any:
    """Read the recipe and load what a plan needs of it."""
    from hf_stages import recipes

    recipe = recipes.load(options.recipe, trust_remote_code=options.trust_remote_code)
    from hf_stages.training.from_recipe import prepare  # seconds of imports, once the recipe is known to be one

    return prepare(recipe, trust_remote_code=options.trust_remote_code, output_dir=output_dir)


def say_once(text: str, file: Any = None) -> None:
    """Print on one rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)
