"""Makes the plan of loaded datasets and TrainingArguments: all that needs the data, but no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

from transformers import TrainingArguments

from hf_stages.core.randomness import seed_of
from hf_stages.core.stage import Recipe, Stage
from hf_stages.data.collators.base import find_pair_collator
from hf_stages.data.drawing.blend import Blend, mean_tokens
from hf_stages.data.drawing.scores import count_tokens
from hf_stages.planning.args_values import check_args
from hf_stages.planning.plan import Plan, PlannedStage, Size, make_plan, schedule_defaults
from hf_stages.planning.replay_sources import check_replay, replay_gate
from hf_stages.planning.resolved import ResolvedRecipe, resolve
from hf_stages.planning.stage_args import stage_args, unsupported_args

_PROBED = 64


def plan_for(recipe: Recipe, args: TrainingArguments, prepare: Callable[[Any, Stage], Any] | None = None) -> Plan:
    """Resolve a recipe whose datasets are loaded, and plan it. Every error of the recipe's arithmetic is raised here.

    ``prepare`` makes of a stage's data what is trained on, where that is something else.
    """
    if (reason := unsupported_args(args)) is not None:
        raise ValueError(f"args: {reason}")
    check_args(args)
    own = {stage.name: stage_args(args, stage) for stage in recipe.stages}
    resolved = resolve(recipe)

    def trained(dataset: Any, stage: Stage) -> Any:
        return dataset if prepare is None else prepare(dataset, stage)

    datasets = {stage.name: trained(stage.dataset, stage.stage) for stage in resolved}
    sizes = {}
    for stage in resolved:
        size = size_of(datasets[stage.name], own[stage.name], stage.stage)
        sizes[stage.name] = replace(
            size, rows=size.rows * (2 if find_pair_collator(stage.data_collator) is not None else 1)
        )
    defaults = {stage.name: schedule_defaults(own[stage.name]) for stage in resolved}
    plan = replace(make_plan(recipe, sizes, defaults), resolved=resolved)
    return plan.with_blends(dict(_blends(plan, resolved, own, datasets, trained)))


def _blends(
    plan: Plan,
    resolved: ResolvedRecipe,
    own: Mapping[str, TrainingArguments],
    datasets: Mapping[str, Any],
    trained: Callable[[Any, Stage], Any],
) -> Iterator[tuple[str, Blend]]:
    """Bind the stages' blends as they will be drawn from; weights and sources that run dry are judged here."""
    read: dict[str, list[float]] = {}
    for planned in plan.stages:
        name, stage, args = planned.name, planned.stage, own[planned.name]
        dataset = datasets[name]
        if replay_gate(stage) is not None:
            dataset = trained(resolved.replayable(name, read), stage)
        if isinstance(dataset, Blend):
            seed = stage_seed(args, name)
            dataset.bind(
                planned.steps * planned.size.global_batch, seed, shuffle=sampling_strategy(args) != "sequential"
            )
            dataset.check_dry()
            if dataset.replays:
                check_replay(stage, resolved[name].data_collator, dataset)
            _check_losses(stage, dataset)
            yield name, dataset
        read[name] = examples_read(planned, dataset)


def examples_read(planned: PlannedStage, dataset: Any) -> list[float]:
    """Return how many examples a stage draws of each source, as planned; of a plain dataset one number."""
    examples = float(planned.steps * planned.size.global_batch)
    if not isinstance(dataset, Blend):
        return [examples]
    if not dataset.one_by_one:
        return [float(count) for count in dataset.draws_before(dataset.draws)]
    # Shares of tokens are as much larger in examples as these are shorter.
    shares = dataset.declared_shares(0, dataset.draws)
    each = [share / (mean_tokens(leaf) or 1.0) for share, leaf in zip(shares, dataset.leaves, strict=True)]
    return [examples * one / sum(each) for one in each]


def _check_losses(stage: Stage, blend: Blend) -> None:
    if not isinstance(stage.loss, Mapping):
        return
    if lacking := [name for name in blend.names if name not in stage.loss]:
        raise ValueError(
            f"stage {stage.name!r}: loss: it names the sources {', '.join(stage.loss)}, and {lacking[0]!r} of "
            "train_dataset has no loss; add one for it"
        )


def stage_seed(args: TrainingArguments, name: str) -> int:
    """Return the seed of the order in which a stage reads its data."""
    return seed_of(args.data_seed if args.data_seed is not None else args.seed, name)


def sampling_strategy(args: TrainingArguments) -> str:
    """Return ``train_sampling_strategy`` as text, whether it is an enum or text."""
    return str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))


def size_of(dataset: Any, args: TrainingArguments, stage: Stage) -> Size:
    """Measure how many examples and tokens a dataset holds, in this stage's batches."""
    mixed = isinstance(dataset, Blend)
    examples = dataset.n if mixed else len(dataset) if isinstance(dataset, Sized) else None
    if mixed and sampling_strategy(args) not in ("random", "sequential"):
        raise ValueError(
            f"stage {stage.name!r}: train_sampling_strategy: {sampling_strategy(args)!r} draws from one dataset; a "
            "curriculum has its own order, as has what a gate may replay into: leave it out, and use ByLength(source) "
            "for batches of like length"
        )
    if examples == 0:
        raise ValueError(f"stage {stage.name!r}: train_dataset: expected at least one example, got an empty dataset")
    if examples is None and sampling_strategy(args) == "group_by_length":
        raise ValueError(
            f"stage {stage.name!r}: train_sampling_strategy: 'group_by_length' needs a dataset with a length, got a "
            "stream; leave it out"
        )
    if examples is None and args.dataloader_num_workers > 1:
        raise ValueError(
            f"stage {stage.name!r}: dataloader_num_workers: a stream read by {args.dataloader_num_workers} workers "
            "cannot be resumed at the right example; use 0 or 1"
        )
    return Size(
        examples=examples,
        batch=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        world=args.world_size,
        drop_last=args.dataloader_drop_last,
        tokens_per_example=dataset.tokens_per_example() if mixed else _tokens_per_example(dataset, examples),
        whole_updates=mixed,
        rows=_rows_per_place(dataset) if mixed else 1.0,
    )


def _rows_per_place(blend: Blend) -> float:
    sizes = [(len(leaf.dataset.order), leaf.n) for leaf in blend.leaves if leaf.takes_several]
    return sum(rows for rows, _ in sizes) / sum(n or 0 for _, n in sizes) if len(sizes) == len(blend.leaves) else 1.0


def _tokens_per_example(dataset: Any, examples: int | None) -> float | None:
    """Return the mean length of ``input_ids`` over a few examples spread through the data."""
    if examples is None:
        if not hasattr(dataset, "take"):
            return None  # drawing from a foreign stream would lose its first examples
        probed = list(dataset.take(8))
    else:
        count = min(_PROBED, examples)
        probed = [dataset[i * examples // count] for i in range(count)]
    lengths = [count_tokens(e) for e in probed if isinstance(e, Mapping) and "input_ids" in e]
    return sum(lengths) / len(lengths) if lengths else None
