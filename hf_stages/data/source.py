"""Reads a dataset from the Hub, a local folder or local files, and tokenizes it if a column of text is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_stages.core.fingerprint import fingerprint
from hf_stages.data.augmentation.augment import Augment

_BUILDERS = ("text", "json", "csv", "parquet", "arrow")


@dataclass(frozen=True)
class Source:
    """Says where examples come from and how they become the model's inputs.

    >>> Source("json", data_files="reviews.jsonl", text="review", label="stars").split
    'train'
    """

    path: str
    """A name on the Hub, a local folder (also one that ``save_to_disk`` wrote), or ``text``, ``json``, ``csv``,
    ``parquet``."""
    name: str | None = None
    """The configuration of a Hub dataset, e.g. ``sst2`` of ``glue``."""
    split: str = "train"
    """The split of a Hub dataset or a saved one; a slice such as ``train[:10%]`` works too."""
    data_files: str | tuple[str, ...] | Mapping[str, Any] | None = None
    """Files to read, where ``path`` is ``csv``, ``json``, ``parquet``, ``text`` or ``arrow``: one, a list, a pattern
    such as ``data/*.csv``, or ``{split: files}``. Relative paths are taken from the recipe's folder."""
    streaming: bool = False
    """Read rows as they are needed, instead of all of them first. The stage's ``until`` then counts steps or tokens."""
    revision: str | None = None
    """The version of a Hub dataset: a branch, a tag or a commit."""
    text: str | tuple[str, str] | None = None
    """The column to tokenize, or a pair of columns. None: the dataset is used as it is."""
    label: str | None = None
    """The column that becomes ``labels``. Text labels are numbered in sorted order, or as ``classes`` says."""
    classes: tuple[str, ...] | None = None
    """The names of the labels in order. Give them where train and eval may hold different labels, or when streaming."""
    max_length: int = 128
    """The most tokens of an example; the rest is cut off. With ``chunk``, the tokens of a block."""
    chunk: bool = False
    """Concatenate the texts (an end-of-text token between them) and cut blocks of ``max_length`` for a causal model."""
    limit: int | None = None
    """Read at most this many examples, from the start."""
    rename: Mapping[str, str] | None = None
    """Columns to rename, ``{old: new}``, before all else."""
    keep: tuple[str, ...] = ()
    """Columns to keep beside the tokens and labels."""
    augment: Augment | None = None
    """Makes more rows from these before tokenizing. It needs a ``cache``, because the plan and the run both read the
    data."""

    def __post_init__(self) -> None:
        for key in ("data_files", "text", "classes", "keep"):
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f"path: expected a Hub name, a folder or one of {', '.join(_BUILDERS)}, got {self.path!r}")
        _check_files(self.data_files)
        if self.path in _BUILDERS and self.data_files is None and not os.path.exists(self.path):
            raise ValueError(f"data_files: missing; {self.path} reads files, so say which, e.g. train.{self.path}")
        for key in ("max_length", "limit"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{key}: expected a whole number of at least 1, got {value!r}")
        if isinstance(self.text, tuple) and len(self.text) != 2:
            raise ValueError(f"text: expected a column or a pair of columns, got {list(self.text)}")
        if self.chunk and not isinstance(self.text, str):
            raise ValueError(f"chunk: expected text to name one column, got {self.text!r}")
        if self.augment is not None:
            self._check_augment()

    def resolve(self, base: str | Path) -> Source:
        """Return a copy whose relative paths start at ``base`` (the recipe's folder), where they exist there."""
        base = Path(base)
        path = self.path
        if path not in _BUILDERS and os.path.exists(base / path):
            path = str(base / path)
        augment = self.augment if self.augment is None else self.augment.resolve(base)
        return replace(self, path=path, data_files=_resolve_files(self.data_files, base), augment=augment)

    def load(self, tokenizer: Any = None, *, trust_remote_code: bool = False) -> Any:
        """Return a ``datasets.Dataset``, or an ``IterableDataset`` when streaming. No code of a dataset is run."""
        if self.text is not None and tokenizer is None:
            raise ValueError(
                f"source {self.path!r}: text: {self.text!r} is to be tokenized, but no tokenizer was given"
            )
        data = self._read()
        if self.rename:
            self._check_columns(data, self.rename)
            data = data.rename_columns(dict(self.rename))
        if self.limit is not None:
            data = data.take(self.limit) if self.streaming else data.select(range(min(self.limit, len(data))))
        first = self._first(data, "it has no examples")
        wanted = [*((self.text,) if isinstance(self.text, str) else self.text or ()), *self.keep]
        self._check_columns(data, [*wanted, *([self.label] if self.label else [])], known=list(first))
        data = self._with_labels(data, first)
        if self.augment is not None:
            augment = self.augment if self.augment.text is not None else replace(self.augment, text=self.text)
            data = augment(data)
        if self.text is None:
            return data
        data = self._tokenize(data, tokenizer)
        self._first(data, f"its text is shorter than one block of {self.max_length} tokens; lower max_length")
        return data

    def _check_augment(self) -> None:
        if not isinstance(self.augment, Augment):
            raise ValueError(f"augment: expected {{use: Augment, ...}}, got {self.augment!r}")
        if self.streaming:
            raise ValueError("augment: a stream has no rows by number; leave streaming out")
        if self.augment.cache is None:
            raise ValueError(
                "augment: cache: missing; say where to keep the rows, or every plan and run makes them anew"
            )
        if self.text is None and self.augment.text is None:
            raise ValueError("augment: text: missing, here and in the source; name the column of text")

    def _read(self) -> Any:
        import datasets

        folder = Path(self.path)
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            try:
                return self._from_disk(datasets.load_from_disk(self.path))
            except IndexError as error:  # datasets 5.2 cannot read back an empty dataset that it saved
                raise ValueError(f"source {self.path!r}, split {self.split!r}: it has no examples") from error
        files = list(self.data_files) if isinstance(self.data_files, tuple) else self.data_files
        options = {"split": self.split, "streaming": self.streaming, "revision": self.revision}
        try:
            return datasets.load_dataset(self.path, self.name, data_files=files, **options)
        except Exception as error:
            if self.path in _BUILDERS or folder.exists():
                raise ValueError(f"source {self.path!r}: cannot load {files or folder}: {error}") from error
            raise ValueError(
                f"source {self.path!r}: no such folder here, and it could not be had from the Hub: that needs the "
                "network (HF_HUB_OFFLINE unset) and an existing dataset; or give a local path. "
                f"{type(error).__name__}: {error}"
            ) from error

    def _from_disk(self, saved: Any) -> Any:
        if isinstance(saved, dict):
            if self.split not in saved:
                raise ValueError(
                    f"source {self.path!r}: there is no split {self.split!r}; there are {', '.join(saved)}"
                )
            saved = saved[self.split]
        return saved.to_iterable_dataset() if self.streaming else saved

    def _first(self, data: Any, otherwise: str) -> dict[str, Any]:
        first = next(iter(data), None)
        if first is None:
            raise ValueError(f"source {self.path!r}, split {self.split!r}: {otherwise}")
        return first

    def _check_columns(self, data: Any, wanted: Iterable[str], known: list[str] | None = None) -> None:
        known = known or data.column_names or list(self._first(data, "it has no examples"))
        for column in wanted:
            if column not in known:
                raise ValueError(f"source {self.path!r}: there is no column {column!r}; there are {', '.join(known)}")

    def _with_labels(self, data: Any, first: Mapping[str, Any]) -> Any:
        if self.label is None:
            return data
        if self.label != "labels":
            if "labels" in first:
                raise ValueError(
                    f"source {self.path!r}: label: {self.label!r} cannot become 'labels': that column exists"
                )
            data = data.rename_column(self.label, "labels")
        if not isinstance(first[self.label], str):
            return data
        classes = self.classes
        if classes is None:
            if self.streaming:
                raise ValueError(f"source {self.path!r}: text labels of a stream need their names: classes: [...]")
            classes = tuple(sorted(data.unique("labels")))
        return self._number_labels(data, classes)

    def _number_labels(self, data: Any, classes: tuple[str, ...]) -> Any:
        import datasets

        numbers = {name: number for number, name in enumerate(classes)}

        def number(batch: Mapping[str, Any]) -> dict[str, Any]:
            unknown = sorted({str(label) for label in batch["labels"] if label not in numbers})
            if unknown:
                raise ValueError(f"source {self.path!r}: unknown labels {unknown}; classes are {list(classes)}")
            return {"labels": [numbers[label] for label in batch["labels"]]}

        options: dict[str, Any] = {} if self.streaming else self._options(data, "label", classes)
        if data.features is not None:
            options["features"] = data.features.copy()
            options["features"]["labels"] = datasets.ClassLabel(names=list(classes))
        return data.map(number, batched=True, **options)

    def _tokenize(self, data: Any, tokenizer: Any) -> Any:
        columns = [*((self.text,) if isinstance(self.text, str) else self.text or ())]
        keep = {"labels", *self.keep} if not self.chunk else set()
        names = data.column_names or list(self._first(data, "it has no examples"))
        drop = [name for name in names if name not in keep]

        def tokenize(batch: Mapping[str, Any]) -> dict[str, Any]:
            texts = [batch[column] for column in columns]
            if self.chunk:
                return {
                    "input_ids": _cut_blocks(tokenizer(*texts)["input_ids"], self.max_length, tokenizer.eos_token_id)
                }
            return dict(tokenizer(*texts, truncation=True, max_length=self.max_length))

        options = {} if self.streaming else self._options(data, "tokens", (self, fingerprint(tokenizer)))
        return data.map(tokenize, batched=True, remove_columns=drop, **options)

    @staticmethod
    def _options(data: Any, step: str, how: Any) -> dict[str, Any]:
        # The fingerprint that datasets makes itself pickles the tokenizer, whose state changes with every call.
        digest = hashlib.sha256(f"{data._fingerprint} {step} {how!r}".encode()).hexdigest()
        return {"new_fingerprint": digest[:16]}


def _check_files(files: Any) -> None:
    inside = files.values() if isinstance(files, Mapping) else files if isinstance(files, list | tuple) else None
    if inside is not None and len(inside):
        for file in inside:
            _check_files(file)
    elif files is not None and (not isinstance(files, str | Path) or not str(files)):
        raise ValueError(f"data_files: expected a file, a list of files or {{split: files}}, got {files!r}")


def _resolve_files(files: Any, base: Path) -> Any:
    if isinstance(files, Mapping):
        return {key: _resolve_files(value, base) for key, value in files.items()}
    if isinstance(files, list | tuple):
        return tuple(_resolve_files(file, base) for file in files)
    return files if files is None or "://" in str(files) else str(base / files)


def _cut_blocks(documents: list[list[int]], length: int, end: int | None) -> list[list[int]]:
    """Join the documents and cut blocks of equal length; the rest at the end is dropped.

    >>> _cut_blocks([[1, 2, 3], [4, 5]], 2, end=0)
    [[1, 2], [3, 0], [4, 5]]
    """
    stream: list[int] = []
    for tokens in documents:
        stream += tokens
        if end is not None and tokens and tokens[-1] != end:
            stream.append(end)
    return [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
