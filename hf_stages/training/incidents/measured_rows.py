"""The rows of an update on this rank: found again in the data, and measured one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hf_stages.core.ranks import from_all_ranks
from hf_stages.data.collators.base import find_pair_collator
from hf_stages.reports.incidents import IncidentRow
from hf_stages.training.incidents.row_losses import RowLosses
from hf_stages.training.incidents.row_places import RowPlace, places_of_micro_batch
from hf_stages.training.incidents.row_text import text_of_row
from hf_stages.training.incidents.split_rows import SplitRow, count_tokens_of, split_rows
from hf_stages.training.stage.kept_updates import KeptUpdate
from hf_stages.training.stage.stage_feed import StageFeed

MOST_TEXTS = 64
"""Rows of an update on one rank that are shown as text: the worst ones."""


def measured_rows(trainer: Any, feed: StageFeed, update: KeptUpdate, measure: RowLosses) -> list[IncidentRow]:
    """Measure an update's rows on this rank. Collective: every rank runs as many forwards."""
    rank = trainer.args.process_index
    rows = _split(trainer, feed, update)
    forwards = max(from_all_ranks(len(rows), trainer.args))
    losses = measure([row.columns for _, row in rows], update.t, forwards)
    name = feed.progress.planned.stage.train_dataset
    found = [
        IncidentRow(rank, micro_batch, row.first, loss, count_tokens_of(row.columns), _examples(row, name))
        for (micro_batch, row), loss in zip(rows, losses, strict=True)
    ]
    worst = sorted(range(len(found)), key=lambda i: -found[i].badness)[:MOST_TEXTS]
    texts = {i: text_of_row(rows[i][1], feed.data, trainer.processing_class) for i in worst}
    return [row.with_text(texts.get(i)) for i, row in enumerate(found)]


def _split(trainer: Any, feed: StageFeed, update: KeptUpdate) -> Sequence[tuple[int, SplitRow[RowPlace]]]:
    in_pairs = find_pair_collator(trainer.data_collator) is not None
    found = []
    for number, batch in enumerate(update.batches):
        places = places_of_micro_batch(feed.data, update.epoch, update.done, number, trainer.args.process_index)
        found += [(number, row) for row in split_rows(batch, places, in_pairs=in_pairs)]
    return found


def _examples(row: SplitRow[RowPlace], dataset: Any) -> tuple[dict[str, Any], ...]:
    """Write down the examples of a row. Those of a stage's one dataset have its name, where it has one."""
    found = []
    for place in row.places:
        source = place.source if place.source is not None or not isinstance(dataset, str) else dataset
        told = {**asdict(place), "source": source}
        found.append({key: value for key, value in told.items() if value is not None})
    return tuple(found)
