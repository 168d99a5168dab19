"""``hf-stages new``: a folder with a small run that works at once, to look at and to edit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents

_BYTES = 300_000
"""Bytes of text in each domain; a stage of the run reads about a fifth of them."""


def add_parser(commands: Any, parents: Parents) -> None:
    new = commands.add_parser(
        "new",
        parents=[parents.shared],
        help="write a small run to begin with: hf-stages new first-run, then hf-stages run first-run/run.yaml",
        description="Write DIR/run.yaml and the data that it names: Python's own documentation and source as JSON "
        "lines, and a tokenizer. Nothing is downloaded; the run takes half a minute on a CPU.",
    )
    new.add_argument("folder", metavar="DIR", type=Path, help="a folder that is not there yet, or is empty")
    new.set_defaults(command=_new)


def _new(options: argparse.Namespace) -> int:
    try:
        write_first_run(options.folder)
    except (ValueError, OSError) as error:
        raise Mistake from error
    recipe = options.folder / "run.yaml"
    print(f"written: {recipe}\nNext: hf-stages plan {recipe}\n      hf-stages run {recipe}")
    return OK


def write_first_run(folder: Path, limit_bytes: int = _BYTES) -> None:
    """Write ``run.yaml``, JSON lines of both domains for training and evaluation, and a tokenizer."""
    from hf_stages.data.sample_text import byte_tokenizer, code, prose

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a folder that is not there yet or is empty; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("language", prose), ("code", code)):
        text(limit_bytes).to_json(folder / f"{name}.jsonl")
        text(limit_bytes // 10, split="eval").to_json(folder / f"{name}-eval.jsonl")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    recipe = Path(__file__).parents[1].joinpath("recipes", "first_run.yaml").read_text(encoding="utf-8")
    quoted = json.dumps(folder.as_posix(), ensure_ascii=False)[1:-1]  # a name may hold what YAML would read otherwise
    (folder / "run.yaml").write_text(recipe.replace("FOLDER", quoted), encoding="utf-8")
