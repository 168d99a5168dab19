"""Training of recipes one after another, each to its end; a cut one is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_stages.commands.arms import Arm
from hf_stages.core.differences import diff
from hf_stages.core.fingerprint import fingerprint
from hf_stages.core.folder_lock import lock_folder_on_all_ranks
from hf_stages.core.sealed_folders import RUN_FILE, SCHEMA, read_json, write_json
from hf_stages.core.stage import Recipe
from hf_stages.recipes.files import to_dict
from hf_stages.reports.run_folder import read_run
from hf_stages.training.from_recipe import Prepared, training_arguments

ARM_FILE = "arm.json"
EVALUATIONS = 8
"""How many evaluations an arm gets where its stages declare none: points of the picture of quality against time."""
Guard = Callable[[Any], AbstractContextManager[Any]]
"""A context around the training of each trainer; the command handles signals there."""

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Trainings:
    """Runs of one prepared recipe under changed declarations, each in a folder of its own."""

    prepared: Prepared
    guard: Guard = field(default=lambda trainer: nullcontext())

    def with_args(self, recipe: Recipe, out: Path, **changes: Any) -> Prepared:
        given = {**self.prepared.recipe.args, **changes}
        args = training_arguments(given, output_dir=str(out))
        return replace(self.prepared, recipe=replace(recipe, args=given), args=args)

    def train(self, prepared: Prepared, about: Mapping[str, Any]) -> bool:
        """Train to the end; False where this run was finished before. A run that was declared otherwise is refused."""
        out = Path(prepared.args.output_dir)
        written = {"schema": SCHEMA, "declared": _declaration(prepared), **about}
        if (out / ARM_FILE).is_file():
            held = read_json(out / ARM_FILE, "an arm of a comparison")
            if changes := diff(held["declared"], _plain(written["declared"])):
                raise ValueError(
                    f"{out}: trained as declared otherwise:\n  "
                    + "\n  ".join(changes[:8])
                    + "\nChoose another folder with --out, or "
                    "remove this one"
                )
            if _finished(out):
                logger.warning(f"{out}: finished before; skipped")
                return False
        if prepared.args.process_index == 0:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / ARM_FILE, written)
        trainer = prepared.trainer()
        with self.guard(trainer):
            trainer.train(resume_from_checkpoint=any(out.glob("*/stage.json")) or any(out.glob("checkpoint-*")))
        return True


def run_versus(trainings: Trainings, arms: Sequence[Arm], seeds: Sequence[int], out: Path) -> list[Path]:
    """Train every arm under every seed, into folders such as ``out/seed-0/joint``; return the folders."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected numbers that differ, such as 0 1 2, got {list(seeds)}")
    updates = arms[0].updates
    folders = []
    with lock_folder_on_all_ranks(out, trainings.prepared.args):
        for seed in seeds:
            for arm in arms:
                folder = out / f"seed-{seed}" / arm.name
                folders.append(folder)
                prepared = trainings.with_args(
                    arm.recipe, folder, seed=seed, **_evaluations(trainings.prepared, arms, updates)
                )
                trainings.train(prepared, {"arm": about(arm), "seed": seed})
    return folders


def about(arm: Arm) -> dict[str, Any]:
    """Return what the report needs of an arm besides what its run wrote."""
    keys = ("name", "says", "updates", "lr_sum", "lr_peak")
    by_stage = {key: [dict(stage) for stage in getattr(arm, key)] for key in ("drawn", "called")}
    return {**{key: getattr(arm, key) for key in keys}, **by_stage}


def _evaluations(prepared: Prepared, arms: Sequence[Arm], updates: int) -> dict[str, Any]:
    """Return args of evaluations within the stages, for the picture; none where gates would be asked at them."""
    stages = [stage for arm in arms for stage in arm.recipe.stages]
    own = any("eval_strategy" in stage.args for stage in stages)
    asked = any(gate.on == "evaluation" for stage in stages for gate in stage.gates)
    if own or asked or str(getattr(prepared.args.eval_strategy, "value", prepared.args.eval_strategy)) != "no":
        return {}
    return {"eval_strategy": "steps", "eval_steps": max(updates // EVALUATIONS, 1)}


def _finished(out: Path) -> bool:
    """Tell whether a run is done and whole; what a damaged one lost is trained again."""
    if not (out / RUN_FILE).is_file():
        return False
    run = read_run(out)
    return run.status == "done" and not run.problems


def _declaration(prepared: Prepared) -> dict[str, Any]:
    recipe = prepared.recipe
    sets = {**recipe.sources, **(recipe.train_dataset if isinstance(recipe.train_dataset, Mapping) else {})}
    used = {name: fingerprint(data) for name, data in sets.items()}
    args = {key: value for key, value in recipe.args.items() if key != "output_dir"}
    kept = {"model", "stages", "train_dataset", "eval_dataset", "data_collator", "teacher"}
    described = {key: value for key, value in to_dict(recipe).items() if key in kept}
    return _plain({**described, "args": args, "data": used})


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
