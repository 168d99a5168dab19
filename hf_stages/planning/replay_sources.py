"""The data that a gate with ``action="replay"`` draws from: that of earlier stages, beside the stage's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from hf_stages.core.references import look_up, source_names_in
from hf_stages.core.stage import Stage
from hf_stages.data.collators.base import columns_read, nested_collators
from hf_stages.data.collators.by_source import BySource
from hf_stages.data.curricula.base import check_source
from hf_stages.data.curricula.mixture import Mixture
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.drawing.nodes import Leaf, subtree
from hf_stages.data.drawing.replayed import Replayed

ExamplesRead = Mapping[str, Sequence[float]]
"""How many examples a stage draws of each of its sources, by stage."""
_MODEL_READS = ("input_ids", "labels", "label", "label_ids", "pixel_values", "input_features", "decoder_input_ids")


def replay_gate(stage: Stage) -> Any:
    """Return the stage's gate that may replay; None without one."""
    found = [gate for gate in stage.gates if gate.replays]
    if len(found) > 1:
        raise ValueError(
            f"stage {stage.name!r}: gates: {len(found)} of them replay, and the stage's data have one share to give; "
            "expected one gate with action='replay', which watches all domains in of=[...]"
        )
    return found[0] if found else None


def add_earlier_data(
    stage: Stage,
    own: Any,
    *,
    name: str | None,
    before: Mapping[str, Any],
    known: Mapping[str, Any],
    read: ExamplesRead | None,
) -> Replayed:
    """Return the stage's data with what its gate may replay.

    Args:
        stage: The stage, one of whose gates replays.
        own: What it trains on by itself.
        name: The source that it names; None where it holds its data itself.
        before: The datasets of the stages that it stands on, by stage.
        known: What names stand for.
        read: How many examples those stages draw of each source; None counts all sources as drawn equally.
    """
    gate = replay_gate(stage)
    where = f"stage {stage.name!r}: gates: {type(gate).__name__}: source"
    declared = own.part if isinstance(own, Blend) else own
    name = name if name is not None else _known_name(declared, known) or stage.name
    if (source := gate.replay_source) is not None:
        check_source(source, where)
        for called in source_names_in(source):
            look_up(called, known, where)
        return Replayed(declared, source, name)
    own_rows = [_rows_of(leaf) for leaf in own.leaves] if isinstance(own, Blend) else [own]
    names = list(own.names) if isinstance(own, Blend) else [name]
    found: dict[str, list[Any]] = {}
    for earlier, data in before.items():
        for called, dataset, count in _sources_drawn(earlier, data, known, read):
            if any(dataset is one for one in own_rows):
                continue
            same = next((entry for entry in found.values() if entry[0] is dataset), None)
            if same is not None:
                same[1] += count
            else:
                found[_unused_name(called, [*names, *found])] = [dataset, count]
    if not found:
        raise ValueError(
            f"{where}: no stage before it trained on data that are not its own, so there is nothing to replay; say "
            "what: source='language', or use another action"
        )
    apart = {called: dataset for called, (dataset, _) in found.items() if known.get(called) is not dataset}
    weights = {called: float(count) for called, (_, count) in found.items()}
    return Replayed(declared, Mixture(weights, sources=apart or None), name)


def check_replay(stage: Stage, collator: Any, dataset: Blend) -> None:
    """Refuse what would only show once the gate acts: rows that no batch can hold together, a source that runs dry."""
    gate = replay_gate(stage)
    _check_columns(stage, collator, dataset)
    dataset.replay(((0, gate.most_replayed),))
    try:
        dataset.check_dry()
    except ValueError as error:
        raise ValueError(
            f"{error} (this is at {type(gate).__name__}(most={gate.most_replayed}), from the first update on)"
        ) from None
    finally:
        dataset.replay(())


def _check_columns(stage: Stage, collator: Any, dataset: Blend) -> None:
    """Check that rows of both kinds fit in one batch: both have the columns that the collator or the model reads."""
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
                f"stage {stage.name!r}: gates: {type(replay_gate(stage)).__name__}: source: rows of {old.name!r} "
                f"(columns {', '.join(sorted(theirs))}) and of {new.name!r} ({', '.join(sorted(mine))}) cannot stand "
                f"in one batch: only one of them has {', '.join(sorted(odd))}. Replay data of the same kind: "
                "source=..., or use action='cut_lr' or 'rollback'"
            )


def _columns(leaf: Leaf) -> set[str] | None:
    dataset = _rows_of(leaf)
    if (names := getattr(dataset, "column_names", None)) is not None:
        return set(names)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return None
    row = dataset[0]
    return set(row) if isinstance(row, Mapping) else None


def _sources_drawn(
    stage: str, dataset: Any, known: Mapping[str, Any], read: ExamplesRead | None
) -> list[tuple[str, Any, float]]:
    """Return (name, dataset, examples) of each source that a stage draws from."""
    if not isinstance(dataset, Blend):
        return [(_known_name(dataset, known) or stage, dataset, read[stage][0] if read is not None else 1.0)]
    counts = read[stage] if read is not None else [1.0] * len(dataset.leaves)
    found = []
    for leaf, count in zip(dataset.leaves, counts, strict=False):  # of a stage that may replay, its own come first
        rows = _rows_of(leaf)
        each = len(leaf.dataset.order) / leaf.n if rows is not leaf.dataset and leaf.n else 1.0
        found.append((_known_name(rows, known) or leaf.name, rows, count * each))
    return found


def _rows_of(leaf: Leaf) -> Any:
    """Return the dataset of a source; where a place holds several rows, the dataset of those rows."""
    grouped = hasattr(leaf.dataset, "order") and hasattr(leaf.dataset, "over")
    return leaf.dataset.dataset if grouped else leaf.dataset


def _known_name(dataset: Any, known: Mapping[str, Any]) -> str | None:
    return next((name for name, other in known.items() if other is dataset), None)


def _unused_name(name: str, taken: Sequence[str]) -> str:
    base, number = name, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name
