"""From loaded datasets and TrainingArguments to the plan: what needs the data but no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

from transformers import TrainingArguments

from hf_stages.core.randomness import seed_of
from hf_stages.core.stage import Recipe, Stage
from hf_stages.data.collators.base import find_pair_collator
from hf_stages.data.curricula.base import Curriculum
from hf_stages.data.curricula.mixture import Mixture
from hf_stages.data.curricula.replay import Replay
from hf_stages.data.drawing.blend import Blend, make_blend
from hf_stages.data.drawing.scores import count_tokens
from hf_stages.planning.args_values import check_args
from hf_stages.planning.plan import Plan, Size, args_defaults, make_plan
from hf_stages.planning.replay_sources import Read, check_replay, examples_read, replay_gate, with_earlier
from hf_stages.planning.stage_args import stage_args, unsupported

_PROBED = 64


def plan_for(recipe: Recipe, args: TrainingArguments, prepare: Callable[[Any, Stage], Any] | None = None) -> Plan:
    """The plan of a recipe whose datasets are loaded. Every error of the recipe's arithmetic is raised here.

    ``prepare`` makes of a stage's data what is trained on, where that is something else.
    """

    def data_of(stage: Stage, read: Read | None = None) -> Any:
        dataset = train_dataset_of(recipe, stage, read)
        return dataset if prepare is None else prepare(dataset, stage)

    if (reason := unsupported(args)) is not None:
        raise ValueError(f"args: {reason}")
    check_args(args)
    own = {stage.name: stage_args(args, stage) for stage in recipe.stages}
    sizes = {
        stage.name: replace(
            found := size_of(data_of(stage), own[stage.name], stage), rows=found.rows * _in_pairs(recipe, stage)
        )
        for stage in recipe.stages
    }
    defaults = {stage.name: args_defaults(own[stage.name]) for stage in recipe.stages}
    plan = make_plan(recipe, sizes, defaults)
    return plan.with_blends(dict(_blends(recipe, plan, own, data_of)))


def _blends(
    recipe: Recipe, plan: Plan, own: Mapping[str, TrainingArguments], data_of: Callable[..., Any]
) -> Iterator[tuple[str, Blend]]:
    """The stages' blends as they will be drawn from: weights and dry sources are judged here."""
    read: dict[str, list[float]] = {}
    for planned in plan.stages:
        dataset, args = data_of(planned.stage, read), own[planned.name]
        if isinstance(dataset, Blend):
            seed = stage_seed(args, planned.name)
            dataset.bind(planned.steps * planned.size.global_batch, seed, shuffle=strategy_of(args) != "sequential")
            dataset.check_dry()
            if dataset.replays:
                check_replay(recipe, planned.stage, dataset)
            _check_losses(planned.stage, dataset)
            yield planned.name, dataset
        read[planned.name] = examples_read(planned, dataset)


def _check_losses(stage: Stage, blend: Blend) -> None:
    if not isinstance(stage.loss, Mapping):
        return
    if lacking := [name for name in blend.names if name not in stage.loss]:
        raise ValueError(
            f"stage {stage.name!r}: loss: it names the sources {', '.join(stage.loss)}, and {lacking[0]!r} of train_dataset has no "
            "loss; add one for it"
        )


def stage_seed(args: TrainingArguments, name: str) -> int:
    """What the order of a stage's data is keyed by."""
    return seed_of(args.data_seed if args.data_seed is not None else args.seed, name)


def strategy_of(args: TrainingArguments) -> str:
    return str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))


def train_dataset_of(recipe: Recipe, stage: Stage, read: Read | None = None) -> Any:
    """The stage's own training data, or the recipe's. A curriculum, or a dict that a stage holds, becomes a blend, and so does
    what a gate may replay beside it: as much of each source as earlier stages ``read``, where the plan says so already."""
    own, where = _declared(recipe, stage), f"stage {stage.name!r}: train_dataset"

    def opened(dataset: Any) -> Any:
        return (
            make_blend(dataset, lambda name, where: named(name, recipe, where), where)
            if isinstance(dataset, Curriculum)
            else dataset
        )

    if replay_gate(stage) is None:
        return opened(own)
    return opened(with_earlier(recipe, stage, own, lambda one: opened(_declared(recipe, one)), _known(recipe), read))


def _declared(recipe: Recipe, stage: Stage) -> Any:
    """A dataset or a curriculum."""
    where = f"stage {stage.name!r}: train_dataset"
    dataset = stage.train_dataset if stage.train_dataset is not None else recipe.train_dataset
    dataset = named(dataset, recipe, where)
    if isinstance(dataset, Replay) and dataset.into is None and not isinstance(recipe.train_dataset, Mapping | Replay):
        dataset = replace(dataset, into=recipe.train_dataset)
    if type(dataset) is dict and stage.train_dataset is not None:
        dataset = Mixture(tuple(dataset), dataset)
    if dataset is None:
        raise ValueError(
            f"stage {stage.name!r}: train_dataset: expected a dataset, got none here and none in the trainer"
        )
    if isinstance(dataset, Mapping) and not isinstance(dataset, Curriculum):
        raise ValueError(
            f"stage {stage.name!r}: train_dataset: expected one dataset, got named ones ({', '.join(dataset)}); "
            f"name the one to use: train_dataset={next(iter(dataset), 'name')!r}, or mix them: Mixture({list(dataset)})"
        )
    return dataset


def named(dataset: Any, recipe: Recipe, where: str) -> Any:
    """Look a name up among the recipe's sources, or among named datasets given as a dict."""
    if not isinstance(dataset, str):
        return dataset
    sources = _known(recipe)
    if dataset not in sources:
        raise ValueError(f"{where}: no source is called {dataset!r}; there are {', '.join(sources) or 'none'}")
    return sources[dataset]


def _known(recipe: Recipe) -> dict[str, Any]:
    """What names stand for."""
    return {**recipe.sources, **(recipe.train_dataset if isinstance(recipe.train_dataset, Mapping) else {})}


def size_of(dataset: Any, args: TrainingArguments, stage: Stage) -> Size:
    """How many examples and tokens a dataset holds, in this stage's batches."""
    mixed = isinstance(dataset, Blend)
    examples = dataset.n if mixed else len(dataset) if isinstance(dataset, Sized) else None
    if mixed and strategy_of(args) not in ("random", "sequential"):
        raise ValueError(
            f"stage {stage.name!r}: train_sampling_strategy: {strategy_of(args)!r} draws from one dataset; a curriculum has its own "
            "order, as has what a gate may replay into: leave it out, and use ByLength(source) for batches of like length"
        )
    if examples == 0:
        raise ValueError(f"stage {stage.name!r}: train_dataset: expected at least one example, got an empty dataset")
    if examples is None and strategy_of(args) == "group_by_length":
        raise ValueError(
            f"stage {stage.name!r}: train_sampling_strategy: 'group_by_length' needs a dataset with a length, got a stream; leave it out"
        )
    if examples is None and args.dataloader_num_workers > 1:
        raise ValueError(
            f"stage {stage.name!r}: dataloader_num_workers: a stream read by {args.dataloader_num_workers} workers cannot be "
            "resumed at the right example; use 0 or 1"
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
    held = [(len(leaf.dataset.order), leaf.n) for leaf in blend.leaves if leaf.takes_several]
    return sum(rows for rows, _ in held) / sum(n or 0 for _, n in held) if len(held) == len(blend.leaves) else 1.0


def _in_pairs(recipe: Recipe, stage: Stage) -> int:
    collator = stage.data_collator if stage.data_collator is not None else recipe.data_collator
    return 2 if find_pair_collator(collator) is not None else 1


def _tokens_per_example(dataset: Any, examples: int | None) -> float | None:
    """The mean length of ``input_ids`` over a few examples spread through the data."""
    if examples is None:
        if not hasattr(dataset, "take"):
            return None  # drawing from a foreign stream would lose its first examples
        probed = list(dataset.take(8))
    else:
        count = min(_PROBED, examples)
        probed = [dataset[i * examples // count] for i in range(count)]
    lengths = [count_tokens(e) for e in probed if isinstance(e, Mapping) and "input_ids" in e]
    return sum(lengths) / len(lengths) if lengths else None
