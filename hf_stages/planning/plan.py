"""A recipe in absolute numbers: each stage's steps, folder and learning rates.

Errors of the arithmetic, such as a stage without a step, are raised here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_stages.core.duration import Duration
from hf_stages.core.lineage import lineage
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage import Recipe, Stage, parents_of
from hf_stages.planning.resolved import ResolvedRecipe
from hf_stages.schedules.base import Defaults, Piece, Span
from hf_stages.schedules.of_stage import schedule_of


@dataclass(frozen=True)
class Size:
    """How much data a stage has, and how it is cut into batches."""

    examples: int | None
    """Examples of one epoch; None for a stream without a length."""
    batch: int
    """Examples of one micro-batch on one rank."""
    accumulation: int = 1
    """Micro-batches of one update on one rank."""
    world: int = 1
    """The number of ranks."""
    drop_last: bool = False
    """Whether an incomplete last batch is left out."""
    tokens_per_example: float | None = None
    """The mean length of ``input_ids``; None where the examples have none."""
    whole_updates: bool = False
    """True for a curriculum: an epoch is rounded up to whole updates, and drawing goes on behind its end."""
    rows: float = 1.0
    """How many rows of a batch one example makes: two for a pair of answers, several for ``ByLength(tokens=...)``."""

    @property
    def global_batch(self) -> int:
        """Count the examples of one update, over all ranks and accumulated micro-batches."""
        return self.batch * self.accumulation * self.world

    @property
    def batches_per_epoch(self) -> int | None:
        """Count the micro-batches of one epoch on one rank. The last may be smaller, or padded to all ranks.

        >>> Size(examples=10, batch=4, accumulation=2).batches_per_epoch
        3
        """
        if self.examples is None:
            return None
        if self.whole_updates:
            return math.ceil(self.examples / self.global_batch) * self.accumulation
        batches = self.examples / self.batch
        batches = math.floor(batches) if self.drop_last else math.ceil(batches)
        return batches // self.world if self.drop_last else math.ceil(batches / self.world)

    @property
    def updates_per_epoch(self) -> int | None:
        """Count the updates of one epoch. Micro-batches left over at its end are an update too, as in Trainer."""
        batches = self.batches_per_epoch
        return None if batches is None else math.ceil(batches / self.accumulation)


@dataclass(frozen=True)
class Teaching:
    """What a stage learns from, in words that name the layers of its models."""

    losses: tuple[str, ...]
    """One text for each term. ``HiddenMSE 0-0 1-2``: the student's layer 1 learns from the teacher's layer 2."""
    teacher: str | None = None
    """Who teaches; None where no term compares with a teacher."""
    reach: str = ""
    """How far the teacher is run, such as ``runs to block 3, no head``."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage in absolute numbers."""

    index: int
    """The stage's place, from 1. The folder's name begins with it, and logs have it as ``stage``."""
    stage: Stage
    parent: str | None
    """The stage whose result this one starts from; None is the initial model."""
    size: Size
    steps: int
    """Updates at most. An estimate (``exact=False``) where the cap is in tokens."""
    exact: bool
    first_step: int
    """The updates that all stages before it have planned."""
    span_root: str
    """The stage that declared the learning-rate span which this one is a part of: itself, or one that it resumes."""
    s0: float
    """Where in that span the stage begins, in updates."""
    s1: float
    """Where in that span it ends."""
    lr_in: float
    """The learning rate at its start."""
    lr_out: float
    """The learning rate at its end."""
    teaching: Teaching | None = None
    """What it learns from; None where the models' shapes are not known."""
    blend: Any = None
    """A curriculum's sources, bound to the stage's length; None where it trains on one dataset."""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def folder(self) -> str:
        """Name the stage's folder in the run's, such as ``01-main``."""
        return f"{self.index:02d}-{self.name}"

    @property
    def tokens(self) -> float | None:
        """Estimate the tokens that the stage trains on; None where its examples have no ``input_ids``."""
        if self.stage.until.unit == "tokens":  # type: ignore[union-attr]
            return self.stage.until.amount  # type: ignore[union-attr]
        if self.size.tokens_per_example is None:
            return None
        return self.steps * self.size.global_batch * self.size.tokens_per_example


@dataclass(frozen=True)
class Plan:
    """All stages of a run in absolute numbers.

    >>> plan = make_plan(Recipe([Stage("main", "2 epochs")]), {"main": Size(8, batch=4)}, {"main": Defaults(1e-3)})
    >>> plan.total_steps, plan["main"].folder
    (4, '01-main')
    """

    stages: tuple[PlannedStage, ...]
    """The stages, in the order they run."""
    spans: Mapping[str, Span] = field(repr=False)
    """Learning-rate spans as planned, by the stage that declares them."""
    show: Callable[[Plan], str] | None = field(default=None, repr=False, compare=False)
    """Prints the plan as a table. A trainer's plan has one."""
    resolved: ResolvedRecipe = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    """What each stage works with. Only a plan of bare numbers (``make_plan``) has none."""

    def __str__(self) -> str:
        return repr(self) if self.show is None else self.show(self)

    @property
    def total_steps(self) -> int:
        """Count the updates of all stages."""
        return sum(stage.steps for stage in self.stages)

    def __getitem__(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    def lineage(self, name: str) -> tuple[PlannedStage, ...]:
        """Return the stages that a stage stands on, from the first, and itself at the end."""
        return tuple(self[one] for one in lineage(name, lambda one: self[one].parent))

    def with_teaching(self, found: Mapping[str, Teaching]) -> Plan:
        """Return the plan with what each stage learns from."""
        stages = [replace(stage, teaching=found.get(stage.name, stage.teaching)) for stage in self.stages]
        return replace(self, stages=tuple(stages))

    def with_blends(self, blends: Mapping[str, Any]) -> Plan:
        """Return the plan with the sources of each curriculum."""
        return replace(self, stages=tuple(replace(stage, blend=blends.get(stage.name)) for stage in self.stages))

    def with_recipe(self, recipe: Recipe) -> Plan:
        """Return the same numbers and datasets for another recipe, whose stages differ in parts that are loaded now."""
        stages = tuple(replace(stage, stage=recipe[stage.name]) for stage in self.stages)
        return replace(self, stages=stages, resolved=self.resolved.with_recipe(recipe))

    def peak_lr(self, name: str) -> float:
        """Return the highest planned learning rate of a stage, which may lie between its ends."""
        stage = self[name]
        return self.spans[stage.span_root].highest(stage.s0, stage.s1)

    def piece(self, name: str) -> Piece:
        """Return the part of its learning-rate span that a stage runs through."""
        stage = self[name]
        return Piece(self.spans[stage.span_root], stage.s0, stage.steps)

    def lr_at(self, name: str, t: float) -> float:
        """Return the planned learning rate of a stage at progress t."""
        stage = self[name]
        return self.spans[stage.span_root].lr(stage.s0 + t * (stage.s1 - stage.s0))


def make_plan(recipe: Recipe, sizes: Mapping[str, Size], defaults: Mapping[str, Defaults]) -> Plan:
    """Turn durations into steps and schedules into learning rates; refuse what cannot run."""
    parents = parents_of(recipe.stages)
    steps = {stage.name: steps_of(stage, sizes[stage.name]) for stage in recipe.stages}
    if long := [name for name, count in steps.items() if count > 2**53]:
        raise ValueError(f"stage {long[0]!r}: until: expected at most {2**53} steps, got {steps[long[0]]:.6g}")
    roots = _span_roots(recipe.stages, parents)
    spans: dict[str, Span] = {}
    planned: dict[str, PlannedStage] = {}
    for index, stage in enumerate(recipe.stages, start=1):
        root, parent = roots[stage.name], parents[stage.name]
        s0 = 0.0
        if root == stage.name:
            parent_lr = planned[parent].lr_out if parent else None
            spans[root] = span_of(stage, defaults[root], _span_total(root, steps, roots, parents), parent_lr)
            with place_errors(f"stage {stage.name!r}: schedule"):
                schedule_of(stage).check(spans[root], steps[stage.name])
        elif parent is not None:
            s0 = planned[parent].s1
        s1 = s0 + steps[stage.name]
        planned[stage.name] = PlannedStage(
            index=index,
            stage=stage,
            parent=parent,
            size=sizes[stage.name],
            steps=steps[stage.name],
            exact=stage.until.unit != "tokens",  # type: ignore[union-attr]
            first_step=sum(p.steps for p in planned.values()),
            span_root=root,
            s0=s0,
            s1=s1,
            lr_in=spans[root].lr(s0),
            lr_out=spans[root].lr(s1),
        )
    return Plan(tuple(planned.values()), spans)


def steps_of(stage: Stage, size: Size) -> int:
    """Count the updates that a stage's cap allows: rounded up, never zero.

    >>> steps_of(Stage("a", "1.5 epochs"), Size(examples=10, batch=2, accumulation=2))
    5
    """
    until = stage.until
    assert isinstance(until, Duration)
    if size.examples is not None and not size.updates_per_epoch:
        raise ValueError(
            f"stage {stage.name!r}: train_dataset: {size.examples} examples give no batch of {size.batch} on "
            f"{size.world} rank(s){' with drop_last' if size.drop_last else ''}; the stage would have no step"
        )
    if until.unit == "steps":
        return math.ceil(until.amount)
    if until.unit == "epochs":
        if size.updates_per_epoch is None:
            raise ValueError(
                f"stage {stage.name!r}: until: {str(until)!r} on a stream without a length; "
                'say steps or tokens, such as until="1000 steps"'
            )
        return math.ceil(until.amount * size.updates_per_epoch)
    if not size.tokens_per_example:
        raise ValueError(
            f"stage {stage.name!r}: until: {str(until)!r}, but the examples have no input_ids to count; say steps or "
            "epochs"
        )
    if size.examples is not None and not size.whole_updates:  # an epoch's last update is smaller, so count by epochs
        return math.ceil(until.amount / (size.tokens_per_example * size.examples) * (size.updates_per_epoch or 1))
    return math.ceil(until.amount / (size.tokens_per_example * size.global_batch))


def span_of(stage: Stage, defaults: Defaults, total: int, parent_lr: float | None) -> Span:
    """Return the learning-rate span that a stage declares, over ``total`` steps."""
    schedule = schedule_of(stage)
    with place_errors(f"stage {stage.name!r}: schedule"):
        return schedule.span(defaults, total=total, parent_lr=parent_lr)


def _span_roots(stages: Sequence[Stage], parents: Mapping[str, str | None]) -> dict[str, str]:
    """Return the stage that declares each stage's span: itself, or the one that its schedule resumes."""
    roots: dict[str, str] = {}
    for stage in stages:
        parent = parents[stage.name]
        resumed = parent if schedule_of(stage).resumes else None
        roots[stage.name] = roots[resumed] if resumed is not None else stage.name
    return roots


def _span_total(
    root: str, steps: Mapping[str, int], roots: Mapping[str, str], parents: Mapping[str, str | None]
) -> int:
    """Return the length of a span: the longest chain of stages that resume it."""

    def length(name: str) -> int:
        chain = [child for child, parent in parents.items() if parent == name and roots[child] == root]
        return steps[name] + max((length(child) for child in chain), default=0)

    return length(root)


def schedule_defaults(args: Any) -> Defaults:
    """Return what a schedule takes from TrainingArguments where it does not say its own."""
    kind = args.lr_scheduler_type
    return Defaults(
        learning_rate=args.learning_rate,
        warmup=args.warmup_steps or 0,
        shape=str(getattr(kind, "value", kind)),
        shape_kwargs=args.lr_scheduler_kwargs or {},
    )
