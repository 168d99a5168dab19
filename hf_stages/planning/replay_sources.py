"""What a gate with ``action="replay"`` draws from: the earlier stages' data beside the stage's own, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from hf_stages.core.stage import Recipe, Stage, parents_of
from hf_stages.data.collators.base import columns_read, nested_collators
from hf_stages.data.collators.by_source import BySource
from hf_stages.data.curricula.base import Curriculum, check_source
from hf_stages.data.curricula.mixture import Mixture
from hf_stages.data.drawing.blend import Blend, mean_tokens
from hf_stages.data.drawing.nodes import Leaf, subtree
from hf_stages.data.drawing.replayed import Replayed
from hf_stages.planning.plan import PlannedStage

Read = Mapping[str, Sequence[float]]
"""By stage: examples of each of its sources."""
_MODEL_READS = ("input_ids", "labels", "label", "label_ids", "pixel_values", "input_features", "decoder_input_ids")


def replay_gate(stage: Stage) -> Any:
    """The stage's gate that may replay; None without one."""
    found = [gate for gate in stage.gates if gate.replays]
    if len(found) > 1:
        raise ValueError(
            f"stage {stage.name!r}: gates: {len(found)} of them replay, and the stage's data have one share to give; expected one gate "
            "with action='replay', which watches all domains in of=[...]"
        )
    return found[0] if found else None


def with_earlier(
    recipe: Recipe, stage: Stage, own: Any, data_of: Callable[[Stage], Any], known: Mapping[str, Any], read: Read | None
) -> Replayed:
    """The stage's data with what its gate may replay. ``read`` says how much of what earlier stages draw; None: as if equally much."""
    gate, given = replay_gate(stage), stage.train_dataset if stage.train_dataset is not None else recipe.train_dataset
    where = f"stage {stage.name!r}: gates: {type(gate).__name__}: source"
    name = given if isinstance(given, str) else _known_as(own, known) or stage.name
    if (source := gate.replay_source) is not None:
        check_source(source, where)
        for called in source.source_names() if isinstance(source, Curriculum) else [source]:
            if isinstance(called, str) and called not in known:
                raise ValueError(f"{where}: no source is called {called!r}; there are {', '.join(known) or 'none'}")
        return Replayed(own, source, name)
    alone = data_of(stage)  # without what is to be replayed
    held = [_rows_of(leaf) for leaf in alone.leaves] if isinstance(alone, Blend) else [alone]
    names = list(alone.names) if isinstance(alone, Blend) else [name]
    found: dict[str, list[Any]] = {}
    for before in _before(recipe, stage):
        for called, dataset, count in _drawn(before, data_of(before), known, read):
            if any(dataset is one for one in held):
                continue
            same = next((entry for entry in found.values() if entry[0] is dataset), None)
            if same is not None:
                same[1] += count
            else:
                found[_free(called, [*names, *found])] = [dataset, count]
    if not found:
        raise ValueError(
            f"{where}: no stage before it trained on data that are not its own, so there is nothing to replay; say what: "
            "source='language', or use another action"
        )
    apart = {called: dataset for called, (dataset, _) in found.items() if known.get(called) is not dataset}
    weights = {called: float(count) for called, (_, count) in found.items()}
    return Replayed(own, Mixture(weights, sources=apart or None), name)


def examples_read(planned: PlannedStage, dataset: Any) -> list[float]:
    """Examples of each source (of the one dataset) that a stage draws, as planned."""
    examples = float(planned.steps * planned.size.global_batch)
    if not isinstance(dataset, Blend):
        return [examples]
    if not dataset.one_by_one:
        return [float(count) for count in dataset.draws_before(dataset.draws)]
    # Shares of tokens are as much larger in examples as these are shorter.
    shares = dataset.declared_shares(0, dataset.draws)
    each = [share / (mean_tokens(leaf) or 1.0) for share, leaf in zip(shares, dataset.leaves, strict=True)]
    return [examples * one / sum(each) for one in each]


def check_replay(recipe: Recipe, stage: Stage, dataset: Blend) -> None:
    """What would only show once the gate acts: rows that no batch can hold together, a source that runs dry."""
    gate = replay_gate(stage)
    _check_columns(recipe, stage, dataset)
    dataset.replay(((0, gate.most_replayed),))
    try:
        dataset.check_dry()
    except ValueError as error:
        raise ValueError(
            f"{error} (this is at {type(gate).__name__}(most={gate.most_replayed}), from the first update on)"
        ) from None
    finally:
        dataset.replay(())


def _check_columns(recipe: Recipe, stage: Stage, dataset: Blend) -> None:
    """Rows of both kinds come in one batch: the columns that the collator or the model reads must be those of both."""
    collator = stage.data_collator if stage.data_collator is not None else recipe.data_collator
    if any(isinstance(one, BySource) for one in nested_collators(collator)):
        return  # each source's rows have a collator of their own
    read = {*_MODEL_READS, *columns_read(collator)}
    own, earlier = ([node for node in subtree(child) if isinstance(node, Leaf)] for child in dataset.root.children())
    for new in own:
        for old in earlier:
            mine, theirs = _columns(new), _columns(old)
            if mine is None or theirs is None or not (odd := (mine ^ theirs) & read):
                continue
            raise ValueError(
                f"stage {stage.name!r}: gates: {type(replay_gate(stage)).__name__}: source: rows of {old.name!r} (columns "
                f"{', '.join(sorted(theirs))}) and of {new.name!r} ({', '.join(sorted(mine))}) cannot stand in one batch: only one of them has "
                f"{', '.join(sorted(odd))}. Replay data of the same kind: source=..., or use action='cut_lr' or 'rollback'"
            )


def _columns(leaf: Leaf) -> set[str] | None:
    dataset = _rows_of(leaf)
    if (names := getattr(dataset, "column_names", None)) is not None:
        return set(names)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return None
    row = dataset[0]
    return set(row) if isinstance(row, Mapping) else None


def _drawn(stage: Stage, dataset: Any, known: Mapping[str, Any], read: Read | None) -> list[tuple[str, Any, float]]:
    """(name, dataset, examples) of all that a stage trains on."""
    if not isinstance(dataset, Blend):
        return [(_known_as(dataset, known) or stage.name, dataset, read[stage.name][0] if read is not None else 1.0)]
    counts = read[stage.name] if read is not None else [1.0] * len(dataset.leaves)
    found = []
    for leaf, count in zip(dataset.leaves, counts, strict=False):  # of a stage that may replay, its own come first
        rows = _rows_of(leaf)
        each = len(leaf.dataset.order) / leaf.n if rows is not leaf.dataset and leaf.n else 1.0
        found.append((_known_as(rows, known) or leaf.name, rows, count * each))
    return found


def _rows_of(leaf: Leaf) -> Any:
    """The dataset; of places that hold several rows, what these are rows of."""
    grouped = hasattr(leaf.dataset, "order") and hasattr(leaf.dataset, "over")
    return leaf.dataset.dataset if grouped else leaf.dataset


def _before(recipe: Recipe, stage: Stage) -> list[Stage]:
    """The stages that this one stands on, earliest first."""
    parents = parents_of(recipe.stages)
    parent = parents[stage.name]
    return [] if parent is None else [*_before(recipe, recipe[parent]), recipe[parent]]


def _known_as(dataset: Any, known: Mapping[str, Any]) -> str | None:
    return next((name for name, other in known.items() if other is dataset), None)


def _free(name: str, taken: Sequence[str]) -> str:
    base, number = name, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name
