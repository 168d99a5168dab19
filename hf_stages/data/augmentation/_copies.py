"""Adds changed copies of its rows to a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from hf_stages.core.randomness import seed_of
from hf_stages.data.augmentation._lexicon import Neighbours
from hf_stages.data.augmentation._masked import MaskedWords
from hf_stages.data.augmentation._words import Word, replace_words, words_in

_CHUNK = 1024
"""How many rows are handled together: their masked copies are sorted by length."""
Texts = tuple[str, ...]
Proposer = Callable[[Sequence[Texts]], list[list[list[Word]]]]
"""Takes rows of texts; returns for each row and column the words that may be replaced, with their candidates."""


class Drawing(NamedTuple):
    """How copies are drawn: how many, with which probability for each word, from which seed."""

    n: int
    p: float
    seed: int


def make_proposer(stopwords: Collection[str], masked: MaskedWords | None, near: Neighbours) -> Proposer:
    """Make a proposer: candidates come from the masked model where it gives any, else from nearest neighbours."""

    def propose(rows: Sequence[Texts]) -> list[list[list[Word]]]:
        words = [[words_in(text, stopwords) for text in row] for row in rows]
        found = masked(rows, words) if masked is not None else {}
        places = [(r, c, w) for r, row in enumerate(words) for c, several in enumerate(row) for w in several]
        near.learn({word.text for r, c, word in places if (r, c, word.start) not in found})
        full: list[list[list[Word]]] = [[[] for _ in row] for row in rows]
        for r, c, word in places:
            candidates = found[r, c, word.start] if (r, c, word.start) in found else near(word.text)
            full[r][c].append(word._replace(candidates=candidates))
        return full

    return propose


def copies_of(row: Texts, words: Sequence[Sequence[Word]], key: int, drawing: Drawing) -> list[Texts]:
    """Return at most ``n`` new rows, each drawn from the original. Repeated and unchanged rows are left out.

    Every text of a row is drawn on its own, from the original. (TinyBERT's code draws all second sentences beside the
    last new first sentence.)
    """
    new: dict[Texts, None] = {}
    for copy in range(drawing.n):
        made = tuple(
            replace_words(text, words[column], drawing.p, seed_of(key, copy, column)) for column, text in enumerate(row)
        )
        if made != row:
            new.setdefault(made)
    return list(new)


def rows_with_copies(
    dataset: Any, columns: Sequence[str], propose: Proposer, drawing: Drawing
) -> Iterator[tuple[int, Texts, list[Texts]]]:
    """Yield (number, texts, new texts) of every row, in order.

    A row's copies depend on its texts, on how many equal rows come before it, and on the settings, but not on its
    place.
    """
    plain, seen = dataset.with_format(None).select_columns(list(columns)), Counter[Texts]()
    for start in range(0, len(plain), _CHUNK):
        chunk = plain[start : min(start + _CHUNK, len(plain))]
        rows = list(zip(*(chunk[column] for column in columns), strict=True))
        _check_texts(rows, columns, start)
        for number, (row, words) in enumerate(zip(rows, propose(rows), strict=True), start=start):
            key = seed_of("augment", drawing.seed, seen[row], *row)
            seen[row] += 1
            yield number, row, copies_of(row, words, key, drawing)


def augment_rows(
    dataset: Any, columns: Sequence[str], propose: Proposer, drawing: Drawing, *, originals: bool, fingerprint: str
) -> tuple[Any, int]:
    """Return the new dataset, and how many of its rows are new. All other columns are copied."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable
    from datasets.utils import tqdm

    arrow, parts, count = dataset.with_format("arrow"), [], 0
    numbers: list[int] = []
    texts: list[Texts] = []

    def flush() -> None:
        table = arrow[numbers]
        for at, column in enumerate(columns):
            field = table.schema.field(column)
            values = pa.array([row[at] for row in texts], field.type)
            table = table.set_column(table.schema.get_field_index(column), field, values)
        parts.append(table)
        numbers.clear()
        texts.clear()

    with tqdm(total=len(dataset), desc="augment", unit=" rows") as progress:
        for number, row, new in rows_with_copies(dataset, columns, propose, drawing):
            made = [row, *new] if originals else new
            numbers += [number] * len(made)
            texts += made
            count += len(new)
            progress.update()
            if len(numbers) >= _CHUNK:
                flush()
    if numbers:
        flush()
    if not parts:
        raise ValueError(
            "Augment: no new example came out: no word has a candidate (all are stopwords, or no words of letters); "
            "give originals=True, or look at Augment.preview"
        )
    info = DatasetInfo(features=dataset.features)
    table = InMemoryTable(pa.concat_tables(parts))
    return Dataset(table, info=info, split=dataset.split, fingerprint=fingerprint), count


def _check_texts(rows: Sequence[Sequence[Any]], columns: Sequence[str], start: int) -> None:
    for number, row in enumerate(rows, start=start):
        for column, text in zip(columns, row, strict=True):
            if text is None:
                raise ValueError(
                    f"Augment: row {number}: {column!r} is empty (None); filter such rows out or fill them in"
                )
