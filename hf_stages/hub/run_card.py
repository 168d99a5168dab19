"""The model card of a staged run: Trainer's own card knows of one stage only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_stages.core.sealed_folders import CARD, RUN_FILE, read_json
from hf_stages.reports.cards.model_card import run_card


def write_run_card(trainer: Any, inner: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Write the card into the run's folder, in the place of Trainer's own.

    Args:
        trainer: Whose run it is.
        inner: Trainer's own ``create_model_card``, whose arguments these are.
        args: Its positional arguments.
        options: Its keyword arguments.
    """
    if not trainer.is_world_process_zero():
        return
    given = dict(inspect.signature(inner).bind(*args, **options).arguments)
    if "dataset_name" in given:  # TRL's name for it
        given["dataset"] = given.pop("dataset_name")
    out = Path(trainer.args.output_dir)
    given["tags"] = [*_as_list(given.get("tags")), *_tags(out / CARD)]
    (out / CARD).write_text(run_card(out, _last_done(out), given), encoding="utf-8")


def _last_done(out: Path) -> str | None:
    """Find the stage whose model the trainer holds: stages run in the order of their folders."""
    if not (out / RUN_FILE).is_file():
        return None
    stages = read_json(out / RUN_FILE, "a run manifest")["stages"].values()
    return max((stage["folder"] for stage in stages if stage["status"] == "done"), default=None)


def _tags(path: Path) -> list[str]:
    """Read the tags of a card that is there already, as saving a model may write one."""
    from huggingface_hub import ModelCard

    return [] if not path.is_file() else list(ModelCard.load(path).data.tags or [])


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
