"""``run.json``: what the run declared, what is done, and whether a resumed recipe is still the same run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from hf_stages.core.differences import diff
from hf_stages.core.fingerprint import fingerprint
from hf_stages.core.ledger import Ledger
from hf_stages.core.parts import part_to_dict
from hf_stages.core.randomness import preserve_random_state, seed_data
from hf_stages.core.sealed_folders import (
    RUN_FILE,
    SCHEMA,
    STAGE_FILE,
    STATE_FILE,
    checkpoints,
    find_damage,
    newest_intact_checkpoint,
    read_json,
    write_json,
)
from hf_stages.core.stage import Recipe
from hf_stages.data.drawing.blend import Blend
from hf_stages.planning.plan import Plan
from hf_stages.planning.stage_args import recorded_args, stage_args
from hf_stages.recipes.files import to_dict
from hf_stages.reports.finished_stage import FinishedStage
from hf_stages.training.stage.cut_stage import CutStage

_NOT_DECLARED = ("gates", "args", "eval_dataset", "compute_metrics", "exporters", "pack_on_save", "monitors", "parents")
"""What watches a stage without changing what it trains, and what is recorded in another form."""

logger = logging.get_logger(__name__)


class Manifest:
    """Opens the run's folder, refuses another recipe's, and writes ``run.json`` in one step at each change.

    Args:
        out: The run's folder.
        recipe: What the run declares.
        args: The trainer's own arguments.
        plan: The recipe in absolute numbers.
    """

    def __init__(self, out: Path, recipe: Recipe, args: TrainingArguments, plan: Plan) -> None:
        self.out, self.recipe, self.args, self.plan = out, recipe, args, plan
        self.done: dict[str, FinishedStage] = {}
        self._declared: dict[str, dict[str, Any]] = {}
        self.described = to_dict(recipe)  # now: stages change the very model that the recipe holds

    @property
    def steps_done(self) -> int:
        return max((stage.global_step for stage in self.done.values()), default=0)

    def folder_of(self, name: str) -> Path:
        return self.out / self.plan[name].folder

    def declared(self, name: str) -> dict[str, Any]:
        """Write down everything that decides what a stage does, with what it takes from the recipe and the args."""
        if name not in self._declared:
            # Fingerprints read examples, which may be augmented at random: under a fixed seed they are always the same.
            with preserve_random_state():
                seed_data(0)
                self._declared[name] = self._declare(name)
        return self._declared[name]

    def _declare(self, name: str) -> dict[str, Any]:
        stage = self.recipe[name]
        declared = to_dict(stage)
        # Expectations judge a stage and do not change it: they may be edited after it is done.
        gates = [g for g, part in zip(declared.get("gates", []), stage.gates, strict=True) if part.on != "end"]
        resolved = self.plan.resolved[name]
        content = getattr(resolved.teacher, "content", None)  # a cache may be written anew in the same place
        return {
            **{key: value for key, value in declared.items() if key not in _NOT_DECLARED},
            "gates": gates,
            "parent": self.plan[name].parent,
            "train_dataset": _data(resolved.dataset),
            "args": recorded_args(stage_args(self.args, stage)),
            "data_collator": fingerprint(resolved.data_collator),
            **({"teacher_cache": content} if content is not None else {}),
        }

    # ---- opening -----------------------------------------------------------------------------------------------------

    def open(self, resume: bool | str | None, *, main: bool, barrier: Callable[[], None]) -> CutStage | None:
        """Find out where the run stands. Returns the stage that was cut and goes on, if there is one."""
        self._find_done()
        held = [str(p) for _, p in checkpoints(self.out) if (p / STATE_FILE).is_file()]
        if not resume:
            self._refuse_to_overwrite(held)
            barrier()
            return None
        self._refuse_another_recipe()
        checkpoint = self._checkpoint(resume)
        barrier()
        if main:
            self._remove_unfinished()
        barrier()
        if checkpoint is None:
            if len(self.done) == len(self.plan.stages):
                logger.warning(f"{self.out}: every stage is done, nothing left to do")
                return None
            where = f"after {list(self.done)[-1]!r}" if self.done else "afresh: nothing was saved to go on from"
            if held and self.args.save_only_model:
                where += f" ({held[0]} holds weights alone: save_only_model)"
            logger.warning(f"resuming {self.out} {where}")
            return None
        state = read_json(checkpoint / STATE_FILE, "a stage state")
        self._refuse_edited(state["stage"], state["declared"], "begun")
        planned = self.plan[state["stage"]]
        if state["global_batch"] != planned.size.global_batch:
            raise ValueError(
                f"{checkpoint}: taken with {state['global_batch']} examples per update, now "
                f"{planned.size.global_batch}; positions "
                "would not match. Set batch size x accumulation x ranks to what it was"
            )
        return CutStage(state, str(checkpoint))

    def _find_done(self) -> None:
        for planned in self.plan.stages:
            folder = self.folder_of(planned.name)
            if not (folder / STAGE_FILE).is_file():
                continue
            if (problem := find_damage(folder)) is not None:
                logger.warning(f"{folder} is passed over: {problem}; its stage will be trained again")
                break  # stages after a lost one stand on nothing
            finished = FinishedStage.read(folder, planned)
            if planned.parent is None or planned.parent in self.done:
                self.done[planned.name] = finished

    def _refuse_to_overwrite(self, held: list[str]) -> None:
        if not self.done and (self.out / RUN_FILE).is_file():
            old = read_json(self.out / RUN_FILE, "a run manifest")
            others = [s["folder"] for s in old["stages"].values() if (self.out / s["folder"] / STAGE_FILE).is_file()]
            if others:
                raise ValueError(
                    f"{self.out} holds the run of another recipe (stages {', '.join(old['stages'])}; {others[0]} is "
                    "done); choose another output_dir"
                )
        found = [str(self.folder_of(name)) for name in self.done] + held
        if found:
            raise ValueError(
                f"{self.out} already holds a run ({len(self.done)} of {len(self.plan.stages)} stages done; such as "
                f"{found[0]}). Resume it (resume_from_checkpoint=True, or hf-stages run --resume), or choose another "
                "output_dir"
            )

    def _refuse_another_recipe(self) -> None:
        if not (self.out / RUN_FILE).is_file():
            return
        old = read_json(self.out / RUN_FILE, "a run manifest")
        gone = [
            name
            for name, entry in old["stages"].items()
            if name not in self.done and (self.out / entry["folder"] / STAGE_FILE).is_file()
        ]
        for name in gone:
            if all(name != p.name or self.plan[name].folder != old["stages"][name]["folder"] for p in self.plan.stages):
                raise ValueError(
                    f"{self.out}: the run of another recipe: its finished stage {name!r} "
                    f"({old['stages'][name]['folder']}) is "
                    "not in this one at that place; choose another output_dir"
                )
        for name, stage in self.done.items():
            self._refuse_edited(name, stage.summary["declared"], "finished")

    def _refuse_edited(self, name: str, old: dict[str, Any], how: str) -> None:
        changes = diff(old, self.declared(name))
        if changes:
            lines = "\n  ".join(changes)
            raise ValueError(
                f"stage {name!r} is {how} and was edited since:\n  {lines}\nPut it back, or choose another output_dir; "
                "stages not yet begun may be edited"
            )

    def _checkpoint(self, resume: bool | str) -> Path | None:
        waiting = [p.name for p in self.plan.stages if p.name not in self.done]

        def wanted(state: dict[str, Any]) -> bool:
            return bool(waiting) and state["resumable"] and state["stage"] == waiting[0]

        if isinstance(resume, bool):
            return newest_intact_checkpoint(self.out, wanted, logger.warning)
        folder = Path(resume)
        if (problem := find_damage(folder)) is not None:
            raise ValueError(f"resume_from_checkpoint: {folder}: {problem}")
        if not wanted(read_json(folder / STATE_FILE, "a stage state")):
            raise ValueError(
                f"resume_from_checkpoint: {folder} belongs to no stage that is still to be trained; pass True to go on "
                "from wherever the run stands"
            )
        return folder

    def _remove_unfinished(self) -> None:
        """Remove what a dying process left half-written."""
        for path in self.out.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write(self, status: str, ledger: Ledger, running: str | None = None) -> None:
        if not self.args.should_save:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        stages = {}
        for planned in self.plan.stages:
            word = "done" if planned.name in self.done else "running" if planned.name == running else "waiting"
            stages[planned.name] = {
                "status": word,
                "folder": planned.folder,
                "steps": planned.steps,
                "parent": planned.parent,
            }
        manifest = {
            "schema": SCHEMA,
            "status": status,
            "recipe": self.described,
            "stages": stages,
            "ledger": ledger.to_list(),
        }
        try:
            write_json(self.out / RUN_FILE, manifest)
        except OSError as error:
            raise OSError(
                f"{self.out / RUN_FILE} could not be written ({error}); every folder saved before it is whole. "
                f"Free space on {self.out} and resume with resume_from_checkpoint=True"
            ) from error


def _data(dataset: Any) -> Any:
    """Describe the training data. A curriculum is written out, so that an edit shows as what it is."""
    if not isinstance(dataset, Blend):
        return fingerprint(dataset)
    return {"curriculum": part_to_dict(dataset.part, "train_dataset"), **dataset.described()}
