"""Makes more examples of a task by replacing words with what a language model would put there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_METHODS = ("mlm", "embeddings")
_NAMES = ("model", "tokenizer", "vectors")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Augment:
    """Adds copies of rows with replaced words: TinyBERT's augmentation of task data (https://arxiv.org/abs/1909.10351).

    It works on raw text, before tokenizing. In each of ``n`` copies of a row, each word that is no stopword is replaced
    with probability ``p`` by one of its ``k`` candidates. If the word is one piece of the tokenizer, the candidates are
    the model's predictions where the word is masked; the other text of a pair is context, too. If it has several
    pieces, the candidates are the nearest words by their vectors. Labels and all other columns are copied. A copied
    label may be wrong for the new text, so augment for a student that learns from a teacher's answers.

    >>> Augment("bert-base-uncased", text=("premise", "hypothesis"), n=10).p
    0.4
    """

    model: Any = None
    """A masked language model or, for ``method="embeddings"``, any encoder: a folder, a name on the Hub, or the
    model."""
    text: str | tuple[str, str] | None = None
    """The column of text, or a pair of columns. None in a ``Source``: the columns that it tokenizes."""
    n: int = 20
    """New examples per row. The paper: 30 for CoLA, MRPC, RTE and STS-B, 20 for SST-2 and QNLI, 10 for MNLI and QQP."""
    p: float = 0.4
    """The probability that a word is replaced."""
    k: int = 15
    """Candidates for a word; one of them is drawn."""
    method: str = "mlm"
    """``mlm``, or ``embeddings``: every word's candidates are nearest neighbours, and the model is not run."""
    tokenizer: Any = None
    """The tokenizer. None: it is loaded from the model's folder."""
    vectors: str | None = None
    """A text file of word vectors (GloVe) for the nearest neighbours; None: the model's input embeddings."""
    stopwords: Sequence[str] | None = None
    """Words that are neither replaced nor inserted; None: a list for English."""
    originals: bool = True
    """Whether each original row is kept, before its copies."""
    seed: int = 0
    """The seed that words are drawn with."""
    max_length: int = 128
    """How many tokens of a row the model reads; later words get neighbours as candidates."""
    batch_size: int = 64
    """How many rows the model reads at a time."""
    cache: str | None = None
    """A folder that stores results: one ``datasets`` folder for each content and settings."""
    device: str | None = None
    """Where the model runs; None: on a GPU if there is one."""

    def __post_init__(self) -> None:
        for key in (*_NAMES, "cache"):
            if isinstance(getattr(self, key), Path):
                object.__setattr__(self, key, str(getattr(self, key)))
        for key in ("text", "stopwords"):
            if isinstance(getattr(self, key), list | set | frozenset):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        for key in ("n", "k", "max_length", "batch_size"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Augment: {key}: expected a whole number of at least 1, got {value!r}")
        if isinstance(self.p, bool) or not isinstance(self.p, int | float) or not 0 < self.p <= 1:
            raise ValueError(f"Augment: p: expected a probability above 0 and at most 1, got {self.p!r}")
        if self.method not in _METHODS:
            raise ValueError(f"Augment: method: expected 'mlm' or 'embeddings', got {self.method!r}")
        if isinstance(self.stopwords, str):
            raise ValueError(f"Augment: stopwords: expected a list of words, got {self.stopwords!r}")
        if isinstance(self.text, tuple) and len(self.text) != 2:
            raise ValueError(f"Augment: text: expected a column or a pair of columns, got {list(self.text)}")
        if self.vectors is not None and not isinstance(self.vectors, str):
            raise ValueError(f"Augment: vectors: expected a text file of word vectors, got {self.vectors!r}")
        self._check_model()

    def _check_model(self) -> None:
        if self.model is None and (self.method == "mlm" or self.vectors is None):
            raise ValueError(
                "Augment: model: missing; give a masked language model, or method='embeddings' with vectors"
            )
        if self.model is not None and not isinstance(self.model, str) and self.tokenizer is None:
            raise ValueError("Augment: tokenizer: missing; a model that is loaded already comes without one")

    def resolve(self, base: str | Path) -> Augment:
        """Return a copy whose relative paths start at ``base`` (the recipe's folder), where they exist there."""
        named = {key: value for key in _NAMES if isinstance(value := getattr(self, key), str)}
        found: dict[str, Any] = {k: str(Path(base) / v) for k, v in named.items() if os.path.exists(Path(base) / v)}
        return replace(self, **found)

    def __call__(self, dataset: Any) -> Any:
        """Return the ``datasets.Dataset`` with its copies, from the cache if they were made before."""
        from hf_stages.core.fingerprint import fingerprint
        from hf_stages.data.augmentation._cache import cached_dataset

        columns = self._columns(dataset)
        settings = self._settings(dataset, columns)
        address = fingerprint(settings)
        if self.cache is None:
            return self._made(dataset, columns, address)
        return cached_dataset(Path(self.cache), address, settings, lambda: self._made(dataset, columns, address))

    def preview(self, dataset: Any, rows: int = 3) -> str:
        """Return the first rows as text, each followed by its copies. Nothing is written."""
        from hf_stages.data.augmentation._copies import rows_with_copies

        columns = self._columns(dataset)
        part = dataset.select(range(min(rows, len(dataset))))
        lines = []
        for _, row, new in rows_with_copies(part, columns, *self._how()):
            lines += [" | ".join(row), *(f"    {' | '.join(texts)}" for texts in new)]
        return "\n".join(lines)

    def _made(self, dataset: Any, columns: Sequence[str], address: str) -> Any:
        from hf_stages.data.augmentation._copies import augment_rows

        start, rows = time.monotonic(), len(dataset)
        result, new = augment_rows(dataset, columns, *self._how(), originals=self.originals, fingerprint=address)
        logger.warning(
            f"Augment: {rows} rows, {new} new ({rows * self.n - new} of {rows * self.n} came out as others did or "
            f"unchanged, and are left out): {len(result)} in all, {time.monotonic() - start:.1f} s"
        )
        return result

    def _how(self) -> Any:
        """Return where candidates come from, and how copies are drawn."""
        from hf_stages.core.randomness import preserve_random_state
        from hf_stages.data.augmentation import _copies, _lexicon, _words, language_model
        from hf_stages.data.augmentation._masked import MaskedWords

        stop = self._stopwords(_words)
        drawing = _copies.Drawing(self.n, self.p, self.seed)
        masked, near = None, _lexicon.by_file(self.vectors, stop, self.k) if self.vectors is not None else None
        if self.model is not None:
            by_mask = self.method == "mlm"
            with preserve_random_state():  # a model draws its weights before it reads them
                model, tokenizer = language_model.load(self.model, self.tokenizer, masked=by_mask, device=self.device)
            lexicon = _lexicon.Lexicon(tokenizer, stop)
            if not lexicon.words:
                raise ValueError("Augment: tokenizer: none of its pieces is a whole word; it cannot name candidates")
            if by_mask:
                length = language_model.longest_input(model, tokenizer, self.max_length)
                masked = MaskedWords(model, lexicon, k=self.k, max_length=length, batch_size=self.batch_size)
            near = near or _lexicon.by_embeddings(model, lexicon, self.k)
        assert near is not None
        return _copies.make_proposer(stop, masked, near), drawing

    def _stopwords(self, words: Any) -> frozenset[str]:
        return words.STOPWORDS if self.stopwords is None else frozenset(word.casefold() for word in self.stopwords)

    def _settings(self, dataset: Any, columns: Sequence[str]) -> dict[str, Any]:
        """Return everything that decides the content.

        Batch size and device change only the last bits, so they are left out.
        """
        from hf_stages.data.augmentation import _words
        from hf_stages.data.augmentation.language_model import identity_of

        if self.vectors is not None and not Path(self.vectors).is_file():
            raise ValueError(f"Augment: vectors: there is no file {self.vectors}")
        plain = {key: getattr(self, key) for key in ("n", "p", "k", "method", "originals", "seed", "max_length")}
        things = {key: identity_of(getattr(self, key)) for key in _NAMES}
        data = {"data": dataset._fingerprint, "rows": len(dataset), "text": list(columns)}
        return {**plain, **things, **data, "stopwords": sorted(self._stopwords(_words)), "version": 1}

    def _columns(self, dataset: Any) -> tuple[str, ...]:
        """Return the columns of text; refuse anything that is not a dataset of raw text."""
        from datasets import Dataset

        if not isinstance(dataset, Dataset):
            hint = "one of its splits" if isinstance(dataset, Mapping) else "one with a length and rows by number"
            raise ValueError(f"Augment: expected a datasets.Dataset, got {type(dataset).__name__}; give {hint}")
        if self.text is None:
            raise ValueError(f"Augment: text: missing; name the column of text, of {', '.join(dataset.column_names)}")
        columns = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        for column in columns:
            if column not in dataset.column_names:
                tokens = "; it is tokenized already: augment before" if "input_ids" in dataset.column_names else ""
                there = ", ".join(dataset.column_names)
                raise ValueError(f"Augment: text: there is no column {column!r}; there are {there}{tokens}")
            kind = getattr(dataset.features[column], "dtype", None)
            if kind not in ("string", "large_string"):
                raise ValueError(f"Augment: text: {column!r} holds {kind or 'lists'}, expected text")
        if "input_ids" in dataset.column_names:
            raise ValueError(
                "Augment: input_ids would be copied as they are, of the original text; augment before tokenizing"
            )
        if not len(dataset):
            raise ValueError("Augment: the dataset has no rows")
        return columns
