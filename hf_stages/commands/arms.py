"""The arms that a staged recipe is compared with: equal in initial weights, updates, examples and learning rates.

Only arithmetic on recipes whose sources are loaded; ``arm_runs.py`` trains the arms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import TrainingArguments

from hf_stages.commands.arm_collators import RowCollators, collators_by_source
from hf_stages.commands.arm_sources import Sources
from hf_stages.core.curves import Step
from hf_stages.core.stage import Recipe, Stage, parents_of
from hf_stages.data.curricula.base import Curriculum
from hf_stages.data.curricula.replay import Replay
from hf_stages.data.drawing.replayed import Replayed
from hf_stages.planning.domains import domains_of
from hf_stages.planning.measure_data import plan_for
from hf_stages.planning.plan import Plan, PlannedStage, schedule_defaults, span_of
from hf_stages.planning.replay_sources import replay_gate
from hf_stages.planning.resolved import ResolvedRecipe, resolve
from hf_stages.planning.stage_args import stage_args
from hf_stages.schedules.of_stage import schedule_of

ARMS = ("staged", "joint", "replay", "annealed")
LATE = 0.2
"""The last part of the annealed arm, in which the last source comes more often (10-20 % in arXiv 2406.03476)."""
_SAME = ("loss", "compute_metrics", "teacher")
"""What all stages must have in common. Collators may differ: each source's rows are collated by its own."""
_MAY_DIFFER = (
    "learning_rate",
    "lr_",
    "warmup",
    "logging",
    "eval",
    "save",
    "load_best",
    "metric_for",
    "greater_is",
)
"""Beginnings of the args that stages may set differently: rates, which the arm's rate follows, and watching."""


@dataclass(frozen=True)
class Arm:
    """One way to spend the same training, as a recipe."""

    name: str
    recipe: Recipe
    says: str
    """What it does, in words."""
    updates: int
    lr_sum: float
    """The learning rate summed over all updates, as planned."""
    lr_peak: float
    drawn: tuple[Mapping[str, float], ...]
    """Examples of each source that each stage draws, as planned."""
    called: tuple[Mapping[str, str], ...] = ()
    """By stage, names of sources in its rows, and the names they count under: ``hard`` may be ``code`` reordered."""

    @property
    def examples(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for stage in self.drawn:
            for name, count in stage.items():
                found[name] = found.get(name, 0.0) + count
        return found


def build_arms(
    recipe: Recipe,
    args: TrainingArguments,
    names: Sequence[str] = ("staged", "joint"),
    *,
    stages: Sequence[str] | None = None,
    lr: str | float = "integral",
    replay: float = 0.05,
) -> list[Arm]:
    """Build the arms by name, always with the staged one. What cannot be compared is refused here.

    ``lr`` is for the joint and the annealed arm: ``"integral"`` scales the first stage's schedule until its sum over
    all updates is the staged run's, ``"peak"`` keeps its peak, a number is the peak.
    """
    for name in names:
        if name not in ARMS:
            raise ValueError(f"arms: there is no {name!r}; there are {', '.join(ARMS)}")
    resolved, staged = _comparable(recipe, stages)
    plan = plan_for(staged, args)
    sources = Sources(staged, plan)
    _check_batches(plan)
    collators = collators_by_source(resolved, plan.stages, sources.names)
    _check_joint(staged, plan, collators, [name for name in names if name in ("joint", "annealed")])
    if collators is not None and collators.problem:
        collators = None  # each stage's own for all that it reads
    make = partial(_arm, args=args, sources=sources, collators=collators)
    arms = [make("staged", staged, "the stages as declared, one after another")]
    for name in dict.fromkeys(names):
        if name == "replay":
            arms.append(make(name, _replay(staged, plan, sources, replay), _describe_replay(replay)))
        elif name in ("joint", "annealed"):
            made, says = _joint(name, staged, plan, sources, args, lr, arms[0].lr_sum)
            arms.append(make(name, made, says))
    return arms


def _comparable(recipe: Recipe, only: Sequence[str] | None) -> tuple[ResolvedRecipe, Recipe]:
    """Return the stages to compare, as declared, and again without what could end the run or change what is read."""
    stages = list(recipe.stages)
    if only is not None:
        for name in only:
            if name not in [stage.name for stage in stages]:
                raise ValueError(f"stages: no stage is called {name!r}; there are {', '.join(s.name for s in stages)}")
        stages = [stage for stage in stages if stage.name in only]
    if len(stages) < 2:
        raise ValueError(
            f"stages: expected two at least, got {', '.join(s.name for s in stages) or 'none'}; with one there is "
            "nothing to compare"
        )
    parents = parents_of(stages)
    for before, stage in itertools.pairwise(stages):
        if parents[stage.name] != before.name:
            raise ValueError(
                f"stage {stage.name!r}: parents: it does not go on from {before.name!r}; compare stages that follow "
                f"one another: --stages {before.name} ..."
            )
    for stage in stages:
        if stage.eval_dataset is not None and not isinstance(stage.eval_dataset, Mapping):
            raise ValueError(
                f"stage {stage.name!r}: eval_dataset: expected named sets, as {{{stage.name}: ...}}; every arm is "
                "measured on each by name"
            )
    if not isinstance(recipe.eval_dataset, Mapping) and (
        recipe.eval_dataset is not None or any(stage.eval_dataset is None for stage in stages)
    ):
        lacking = next((stage.name for stage in stages if stage.eval_dataset is None), stages[0].name)
        raise ValueError(
            f"stage {lacking!r}: eval_dataset: expected named evaluation sets, one for each domain: "
            "eval_dataset: {language: ..., code: ...}; one loss over all of them would hide what is to be compared"
        )
    judged = [replace(s, gates=_gates_that_compare(s), exporters=(), pack_on_save=False) for s in stages]
    resolved = resolve(replace(recipe, stages=judged))
    sets = {domain.name: domain.dataset for domain in domains_of(resolved).values()}
    bare = [replace(s, eval_dataset=None) for s in judged]
    return resolved, replace(recipe, stages=bare, eval_dataset=sets)


def _gates_that_compare(stage: Stage) -> list[Any]:
    """Return the gates that neither end the run nor change which examples are read."""
    replays = replay_gate(stage)
    return [gate for gate in stage.gates if gate.on != "end" and gate is not replays]


def _check_batches(plan: Plan) -> None:
    first = plan.stages[0]
    for stage in plan.stages[1:]:
        if stage.size.global_batch != first.size.global_batch:
            raise ValueError(
                f"stage {stage.name!r}: {stage.size.global_batch} examples per update, {first.size.global_batch} in "
                f"{first.name!r}; one joint stage cannot have as many updates and as many examples: set one batch size "
                "for all"
            )


# ---- the other arms -------------------------------------------------------------------------------------------------


def _check_joint(staged: Recipe, plan: Plan, collators: RowCollators | None, names: Sequence[str]) -> None:
    """Refuse what one joint stage cannot have."""
    if not names:
        return
    first = staged.stages[0]
    for stage in staged.stages[1:]:
        if stage.transforms:
            named = ", ".join(type(part).__name__ for part in stage.transforms)
            raise ValueError(
                f"stage {stage.name!r}: transforms: {named} comes between the stages, which one joint stage cannot "
                "have; leave the stage out: --stages "
                f"{' '.join(s.name for s in staged.stages if not s.transforms or s is first)}"
            )
        for key in _SAME:
            if getattr(stage, key) != getattr(first, key):
                raise ValueError(
                    f"stage {stage.name!r}: {key}: differs from that of {first.name!r}, and a joint stage has one; set "
                    "it for all of the run, or leave the stage out: --stages ..."
                )
        for key in sorted({*stage.args, *first.args}):
            if not key.startswith(_MAY_DIFFER) and stage.args.get(key) != first.args.get(key):
                raise ValueError(
                    f"stage {stage.name!r}: args: {key}: {stage.args.get(key)!r} here and {first.args.get(key)!r} in "
                    f"{first.name!r}, and a joint stage has one; set it for all of the run, or leave the stage out: "
                    "--stages ..."
                )
    if collators is not None and collators.problem:
        raise ValueError(
            "data_collator: differs between the stages, and in a joint stage rows of all stand in one batch: "
            f"{collators.problem}; or set one collator for all of the run, or leave a stage out: --stages ..."
        )


def _joint(
    name: str, staged: Recipe, plan: Plan, sources: Sources, args: TrainingArguments, lr: str | float, lr_sum: float
) -> tuple[Recipe, str]:
    first = staged.stages[0]
    counts: dict[str, float] = {}
    for planned in plan.stages:
        for source, count in sources.of(planned).items():
            counts[source] = counts.get(source, 0.0) + count
    weights: dict[str, Any] = counts
    says = f"one stage on all sources at once ({_describe_shares(counts)})"
    if name == "annealed":
        weights, says = _annealed(counts, sources, plan.stages[-1].name)
    joint = Stage(
        name, f"{plan.total_steps} steps", train_dataset=sources.mixture(weights), transforms=first.transforms,
        loss=first.loss, data_collator=first.data_collator, compute_metrics=first.compute_metrics,
        teacher=first.teacher,
        monitors=first.monitors, args=first.args, schedule=first.schedule,
    )  # fmt: skip
    schedule, rate = _joint_schedule(joint, args, plan.total_steps, lr, lr_sum)
    return replace(staged, stages=[replace(joint, schedule=schedule)]), f"{says}; {rate}"


def _describe_shares(counts: Mapping[str, float]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {100 * count / total:.3g} %" for name, count in counts.items())


def _annealed(counts: Mapping[str, float], sources: Sources, last: str) -> tuple[dict[str, Any], str]:
    """Weigh sources so that each is read as often, but more of the last stage's own in the last part."""
    new = [name for name in counts if sources.first[name] == last]
    total = sum(counts.values())
    share = sum(counts[name] for name in new) / total
    if not new or share >= 1:
        raise ValueError(f"arms: annealed: the last stage {last!r} brings no source of its own to come more often late")
    late = min(0.5 * share / LATE, (1 + share) / 2)  # half of its examples, as far as there is room
    early = (share - LATE * late) / (1 - LATE)
    weights = {}
    for name, count in counts.items():
        part = count / total / (share if name in new else 1 - share)
        ends = [part * (value if name in new else 1 - value) for value in (early, late)]
        weights[name] = Step(((0.0, ends[0]), (1.0 - LATE, ends[1])))
    says = (
        f"one stage on all sources; {', '.join(new)} {100 * early:.3g} % of the examples, {100 * late:.3g} % in the "
        f"last {100 * LATE:.0f} % of the updates"
    )
    return weights, says


def _joint_schedule(
    stage: Stage, args: TrainingArguments, total: int, lr: str | float, target: float
) -> tuple[Any, str]:
    """Return the first stage's schedule over all updates, and its rate in words."""
    schedule = schedule_of(stage)
    defaults = schedule_defaults(stage_args(args, stage))

    def summed(peak: float | None) -> tuple[Any, float, float]:
        made = schedule if peak is None else schedule.with_peak(peak)
        span = span_of(replace(stage, schedule=made), defaults, total, None)
        return made, sum(span.lr(k) for k in range(total)), span.peak

    made, now, peak = summed(None)
    if lr == "peak":
        return made, f"the first stage's peak, {peak:.3g}"
    if isinstance(lr, int | float) and not isinstance(lr, bool):
        if not lr > 0:
            raise ValueError(f"lr: expected a positive peak, got {lr}")
        return summed(float(lr))[0], f"a peak of {lr:.3g}, as asked"
    if lr != "integral":
        raise ValueError(f"lr: expected 'integral', 'peak' or a number, got {lr!r}")
    if now <= 0 or target <= 0:
        raise ValueError("lr: the staged run's learning rate is zero throughout; there is no budget to share")
    for _ in range(30):  # at once, but for shapes that end at a rate of their own
        if abs(now / target - 1) < 1e-9:
            break
        made, now, peak = summed(peak * target / now)
    return made, f"the first stage's schedule with its peak at {peak:.3g}: the learning rate sums to the staged run's"


def _describe_replay(share: float) -> str:
    return f"the stages as declared; {100 * share:.3g} % of each later one's examples come from earlier sources instead"


def _replay(staged: Recipe, plan: Plan, sources: Sources, share: float) -> Recipe:
    if not 0 < share < 1:
        raise ValueError(f"replay: expected a share between 0 and 1, such as 0.05, got {share}")
    before: dict[str, float] = {}
    stages: list[Stage] = []
    for planned in plan.stages:
        stages.append(with_replayed_share(planned, sources, before, share))
        for name, count in sources.of(planned).items():
            before[name] = before.get(name, 0.0) + count
    if stages == list(staged.stages):
        raise ValueError(
            "arms: replay: every later stage reads the earlier sources itself already, so this arm would be the staged "
            "one; leave it out"
        )
    return replace(staged, stages=stages)


def with_replayed_share(planned: PlannedStage, sources: Sources, before: Mapping[str, float], share: float) -> Stage:
    """Return the stage with a share of its examples from sources that were read before and are not its own."""
    own = sources.of(planned)
    old = {name: count for name, count in before.items() if name not in own}
    if not old:
        return planned.stage
    into = own_data(planned, sources)
    # An epoch of it is longer: as many updates as without.
    return replace(
        planned.stage, train_dataset=Replay(sources.mixture(old), share, into=into), until=f"{planned.steps} steps"
    )


def own_data(planned: PlannedStage, sources: Sources) -> Any:
    """Return the stage's own data as a curriculum, without what a gate may replay."""
    part = planned.blend.part if planned.blend is not None else None
    part = part.own if isinstance(part, Replayed) else part
    return part if isinstance(part, Curriculum) else sources.mixture(dict.fromkeys(sources.of(planned), 1.0))


def _arm(
    name: str, recipe: Recipe, says: str, *, args: TrainingArguments, sources: Sources, collators: RowCollators | None
) -> Arm:
    plan = plan_for(recipe, args)
    if collators is not None:
        recipe = replace(recipe, stages=[collators.applied_to(planned, sources.names) for planned in plan.stages])
        says += "; each source's rows by the collator of its stage"
    rates = list(_planned_rates(plan))
    drawn = tuple(sources.of(planned) for planned in plan.stages)
    called = tuple(sources.names(planned) for planned in plan.stages)
    return Arm(name, recipe, says, plan.total_steps, sum(rates), max(rates), drawn, called)


def _planned_rates(plan: Plan) -> Iterator[float]:
    for planned in plan.stages:
        yield from (plan.lr_at(planned.name, k / planned.steps) for k in range(planned.steps))
