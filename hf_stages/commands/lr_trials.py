"""Short trials of one stage from the boundary before it, over learning rates and shares of replay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import TrainingArguments
from transformers.utils import logging

from hf_stages.commands.arm_collators import collators_by_source
from hf_stages.commands.arm_runs import ARM_FILE, Trainings
from hf_stages.commands.arm_sources import Sources
from hf_stages.commands.arms import own_data, with_replayed_share
from hf_stages.core.errors import LossNotFinite
from hf_stages.core.folder_lock import lock_folder_on_all_ranks
from hf_stages.core.sealed_folders import SCHEMA, STAGE_FILE, find_damage, read_json, write_json
from hf_stages.core.stage import Recipe, Stage
from hf_stages.core.stops import StageStopped
from hf_stages.gates.base import Decision, Gate, History
from hf_stages.planning.domains import domains_of, earlier_domains, own_domains, trained_on
from hf_stages.planning.measure_data import plan_for
from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.planning.replay_sources import replay_gate
from hf_stages.planning.resolved import ResolvedRecipe, ResolvedStage, resolve
from hf_stages.schedules.of_stage import schedule_of
from hf_stages.training.from_recipe import Prepared

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""Rates that are tried, as factors of the declared one: more below it than above, since lower rates forget less."""
TRIAL_SHARE, FEWEST_UPDATES = 0.1, 20

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class StopAtBoundary(Gate):
    """Stop a run after its stage. It judges nothing, so the finished stage is the same as without it."""

    on = "end"

    def __call__(self, history: History) -> Decision | None:
        return Decision("stop", "the boundary that probe-lr starts from is reached")


@dataclass(frozen=True)
class TrialPlan:
    """Which trials are to be made of a stage."""

    stage: str
    steps: int
    whole: int
    """Updates of the stage as declared."""
    declared: float
    """The schedule's peak; where it resumes its parent's schedule, the rate that it goes on from."""
    rates: tuple[float, ...]
    replays: tuple[float, ...]
    new: tuple[str, ...]
    """Domains that the stage brings."""
    earlier: tuple[str, ...]
    resumes_to: float | None = None
    """Where the stage resumes its parent's schedule: the share of its first rate that it ends at."""
    in_full: bool = False
    """Whether this is one trial made again over all of the stage's updates."""

    def folder(self, rate: float, share: float) -> str:
        return ("whole-" if self.in_full else "") + f"lr-{rate:.4g}" + (f"-replay-{share:g}" if share else "")

    def whole_stage(self, rate: float, share: float) -> TrialPlan:
        """Return the plan of one trial over the whole stage."""
        return replace(self, steps=self.whole, rates=(rate,), replays=(share,), in_full=True)


def plan_trials(
    prepared: Prepared,
    stage: str,
    *,
    rates: Sequence[float] | None = None,
    replays: Sequence[float] = (0.0,),
    steps: int | None = None,
    share: float | None = None,
) -> TrialPlan:
    """Plan the trials; what cannot be tried or measured is refused here."""
    recipe = prepared.recipe
    plan = plan_for(recipe, prepared.args)
    names = [planned.name for planned in plan.stages]
    if stage not in names:
        raise ValueError(f"stage: no stage is called {stage!r}; there are {', '.join(names)}")
    planned = plan[stage]
    if planned.parent is None:
        raise ValueError(
            f"stage {stage!r}: it starts from the initial model; there is no boundary before it, and nothing to forget"
        )
    declared, ends = plan.spans[planned.span_root].peak, None
    if schedule_of(planned.stage).resumes:
        declared, ends = planned.lr_in, planned.lr_out
        if not declared > 0:
            raise ValueError(
                f"stage {stage!r}: schedule: Resume() goes on at a rate of zero, which no factor changes; give the "
                "stage a rate of its own to try others: Rewarm(to=1e-4), or Fresh(peak=1e-4, optimizer='carry')"
            )
    tried = tuple(dict.fromkeys(rates if rates else [declared * factor for factor in FACTORS]))
    if bad := [rate for rate in tried if not 0 < rate < float("inf")]:
        raise ValueError(f"rates: expected positive learning rates, got {bad[0]}")
    if bad := [one for one in replays if not 0 <= one < 1]:
        raise ValueError(f"replay: expected shares from 0 to below 1, got {bad[0]}")
    if any(replays) and not set(_examples_before(plan, sources := sources_up_to(recipe, plan, stage), planned)) - set(
        sources.of(planned)
    ):
        raise ValueError(
            f"replay: stage {stage!r} reads all that stages before it read itself already, so a share would change "
            "nothing; leave it out"
        )
    new, earlier = _domains(plan.resolved, planned.name)
    length = _trial_length(planned.steps, steps, share)
    share_left = None if ends is None else ends / declared
    return TrialPlan(
        stage, length, planned.steps, declared, tried, tuple(dict.fromkeys(replays)), new, earlier, share_left
    )


def _trial_length(whole: int, steps: int | None, share: float | None) -> int:
    if steps is not None and share is not None:
        raise ValueError("expected --steps or --share, got both")
    if steps is not None:
        if not 1 <= steps <= whole:
            raise ValueError(f"steps: expected from 1 to {whole} (the whole stage), got {steps}")
        return steps
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share: expected above 0 and at most 1, of the stage's updates, got {share}")
    return min(max(round((share or TRIAL_SHARE) * whole), 1 if share else FEWEST_UPDATES), whole)


def _domains(resolved: ResolvedRecipe, stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sets = domains_of(resolved, stage)
    earlier = earlier_domains(resolved, stage)
    new = tuple(name for name in trained_on(resolved, stage) if name in sets and name not in earlier)
    for what, found in (("what it brings", new), ("what was learned before", earlier)):
        if not found:
            raise ValueError(
                f"stage {stage!r}: eval_dataset: no evaluation set measures {what}: expected sets named as the stages "
                "or their sources "
                f"({', '.join(dict.fromkeys(n for s in resolved for n in trained_on(resolved, s.name)))}), got "
                f"{', '.join(sets) or 'none'}"
            )
    _check_measured(resolved[stage], (*new, *earlier))
    return new, earlier


def _check_measured(stage: ResolvedStage, names: Sequence[str]) -> None:
    """Refuse domains without a loss before the stage: one in the parent's folder, or at the stage's first step."""
    own = own_domains(stage)
    for one in stage.lineage[-2:]:
        nothing = isinstance(one.eval_dataset, Mapping) and not one.eval_dataset
        if nothing and (lacking := [n for n in names if n not in own]):
            raise ValueError(
                f"stage {one.name!r}: eval_dataset: is empty, so after it nothing is measured, and "
                f"{', '.join(lacking)} cannot be compared; evaluate them there, or in {stage.name!r} itself"
            )


def run_trials(trainings: Trainings, probe: TrialPlan) -> list[Path]:
    """Run all trials, one after another, into ``output_dir/probe-<stage>``; finished ones are skipped."""
    prepared = trainings.prepared
    plan = plan_for(prepared.recipe, prepared.args)
    before = plan.stages[: plan[probe.stage].index - 1]
    out = Path(prepared.args.output_dir)
    _reach_boundary(trainings, [out / planned.folder for planned in before])
    trials, folders = out / f"probe-{probe.stage}", []
    with lock_folder_on_all_ranks(trials, prepared.args):
        for share in probe.replays:
            for rate in probe.rates:
                folder = trials / probe.folder(rate, share)
                folders.append(folder)
                for planned in before:
                    _link_folder(out / planned.folder, folder / planned.folder)
                _run_trial(trainings, probe, plan, folder, rate, share)
    return folders


def _reach_boundary(trainings: Trainings, folders: Sequence[Path]) -> None:
    """Train up to the boundary in the run's own folder, unless that was done before."""
    if all((folder / STAGE_FILE).is_file() and find_damage(folder) is None for folder in folders):
        return
    prepared = trainings.prepared
    last = len(folders) - 1
    stages = [
        replace(stage, gates=(*stage.gates, StopAtBoundary())) if place == last else stage
        for place, stage in enumerate(prepared.recipe.stages)
    ]
    out = Path(prepared.args.output_dir)
    trainer = replace(prepared, recipe=replace(prepared.recipe, stages=stages)).trainer()
    begun = any(out.glob(f"*/{STAGE_FILE}")) or any(out.glob("checkpoint-*"))
    try:
        with trainings.guard(trainer):
            trainer.train(resume_from_checkpoint=begun)
    except StageStopped as stopped:
        if not isinstance(stopped.gate, StopAtBoundary):
            raise


def _link_folder(source: Path, target: Path) -> None:
    """Give a trial the boundary's folder: by hard links where the disk has them, since nothing writes into it."""
    if target.exists():
        return

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=link)
    os.replace(temporary, target)


def _run_trial(trainings: Trainings, probe: TrialPlan, plan: Plan, folder: Path, rate: float, share: float) -> None:
    if (folder / ARM_FILE).is_file() and read_json(folder / ARM_FILE, "a trial").get("diverged"):
        logger.warning(f"{folder}: did not stay finite before; skipped")
        return
    recipe = trainings.prepared.recipe
    place = plan[probe.stage].index - 1
    sources = None
    counted = share or replay_gate(plan[probe.stage].stage) is not None
    with nullcontext() if counted else suppress(ValueError):  # a trial without replay need not count examples
        sources = sources_up_to(recipe, plan, probe.stage)
    tried = trial_stage(probe, plan, sources, rate, share)
    stages = [*(replace(s, exporters=(), pack_on_save=False) for s in recipe.stages[:place]), tried]
    made = _collated_by_source(replace(recipe, stages=stages), plan, sources, trainings.prepared.args)
    prepared = trainings.with_args(made, folder)
    about = {"rate": rate, "replay": share, "steps": probe.steps, "stage": probe.stage}
    written = {"trial": {**about, "by_source": made.stages[-1] is not tried}}
    try:
        trainings.train(prepared, written)
    except LossNotFinite as error:
        logger.warning(f"{folder}: {error}")
        held = read_json(folder / ARM_FILE, "a trial")
        write_json(folder / ARM_FILE, {**held, "schema": SCHEMA, "diverged": str(error)})


def sources_up_to(recipe: Recipe, plan: Plan, stage: str) -> Sources:
    """Return the sources of the stages up to this one: those of later stages need not be countable."""
    return Sources(recipe, replace(plan, stages=plan.stages[: plan[stage].index]))


def _examples_before(plan: Plan, sources: Sources, planned: PlannedStage) -> dict[str, float]:
    found: dict[str, float] = {}
    for before in plan.lineage(planned.name)[:-1]:
        for source, count in sources.of(before).items():
            found[source] = found.get(source, 0.0) + count
    return found


def trial_stage(probe: TrialPlan, plan: Plan, sources: Sources | None, rate: float, share: float) -> Stage:
    """Return the stage at another rate, with its schedule squeezed into a trial's updates, and without gates."""
    planned = plan[probe.stage]
    stage = planned.stage
    if replay_gate(stage) is not None:  # its order, without the gate
        assert sources is not None
        stage = replace(stage, train_dataset=own_data(planned, sources))
    if share:
        assert sources is not None
        stage = with_replayed_share(planned, sources, _examples_before(plan, sources, planned), share)
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return replace(
        stage,
        until=f"{probe.steps} steps",
        schedule=schedule_of(stage).squeezed(plan.piece(probe.stage), probe.steps, rate),
        gates=(),
        exporters=(),
        pack_on_save=False,
        args={**stage.args, **quiet},
    )


def _collated_by_source(recipe: Recipe, plan: Plan, sources: Sources | None, args: TrainingArguments) -> Recipe:
    """Return the trial with rows and domains collated as in their own stages, if collators differ and mix."""
    *before, tried = recipe.stages
    if sources is None:
        return recipe
    collators = collators_by_source(resolve(recipe), plan.lineage(tried.name), sources.names)
    if collators is None or collators.problem:
        return recipe
    planned = plan_for(recipe, args)[tried.name]
    return replace(recipe, stages=[*before, collators.applied_to(planned, sources.names)])
