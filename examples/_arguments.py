"""Arguments that the examples share: the options of their command lines, and quiet training arguments for a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments


def command_line(
    doc: str,
    *,
    out: str | None = None,
    steps: int | None = None,
    steps_help: str = "updates of each stage",
    required: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Make a parser whose help is the docstring of a script.

    Args:
        doc: The docstring of the script.
        out: The default of ``--out``, the folder that the script writes to.
        steps: The default of ``--steps``.
        steps_help: What ``--steps`` counts.
        required: Names of paths that must be given, such as ``--data``.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in required:
        parser.add_argument(name, type=Path, required=True)
    if out is not None:
        parser.add_argument("--out", type=Path, default=Path(out), help=f"folder to write to (default: {out})")
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help=f"{steps_help} (default: {steps})")
    return parser


def training_arguments(out: Path | str, **changes: Any) -> TrainingArguments:
    """Give the arguments of a short run on the CPU, without trackers and progress bars; ``changes`` override them."""
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 20}
    return TrainingArguments(str(out), **{**quiet, **changes})
