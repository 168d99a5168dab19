"""Asks a masked language model what it would put in a word's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from hf_stages.data.augmentation._lexicon import _ROOM, Lexicon
from hf_stages.data.augmentation._words import Word, pick_candidates

Place = tuple[int, int, int]
"""(row, column, start of the word)."""


class _Copy(NamedTuple):
    """A row of texts with one word masked."""

    place: Place
    word: str
    ids: list[int]
    kinds: list[int]
    at: int
    spaced: bool


class MaskedWords:
    """Finds candidates for words that are one piece of the tokenizer, from the model's predictions where they are
    masked."""

    def __init__(self, model: Any, lexicon: Lexicon, *, k: int, max_length: int, batch_size: int) -> None:
        self.model, self.lexicon, self.tokenizer = model, lexicon, lexicon.tokenizer
        self.k, self.max_length, self.batch_size = k, max_length, batch_size
        bare = [i for i, piece in enumerate(lexicon.bare) if piece >= 0]
        self.pools = {
            True: (torch.tensor(lexicon.spaced, device=model.device), lexicon.words),
            False: (
                torch.tensor([lexicon.bare[i] for i in bare], device=model.device),
                [lexicon.words[i] for i in bare],
            ),
        }
        self.pieces = {spaced: set(ids.tolist()) for spaced, (ids, _) in self.pools.items()}

    def __call__(
        self, rows: Sequence[tuple[str, ...]], words: Sequence[Sequence[Sequence[Word]]]
    ) -> dict[Place, tuple]:
        """Return candidates for ``words`` (per row and column).

        Words of several pieces or behind ``max_length`` are left out.
        """
        copies = sorted(self._copies(rows, words), key=lambda copy: len(copy.ids))
        found: dict[Place, tuple[str, ...]] = {}
        training = self.model.training
        self.model.eval()
        for start in range(0, len(copies), self.batch_size):
            batch = copies[start : start + self.batch_size]
            logits = self._logits(batch)
            for spaced, (ids, known) in self.pools.items():
                mine = [i for i, copy in enumerate(batch) if copy.spaced == spaced]
                if not mine:
                    continue
                ranks = logits[mine][:, ids].topk(min(_ROOM * self.k, len(known))).indices.tolist()
                for i, rank in zip(mine, ranks, strict=True):
                    found[batch[i].place] = pick_candidates(batch[i].word, (known[r] for r in rank), self.k)
        self.model.train(training)
        return found

    def _copies(self, rows: Sequence[tuple[str, ...]], words: Sequence[Sequence[Sequence[Word]]]) -> Iterator[_Copy]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        for row, ids in enumerate(encoded["input_ids"]):
            at = {}
            for token, (column, (start, end)) in enumerate(
                zip(encoded.sequence_ids(row), encoded["offset_mapping"][row], strict=True)
            ):
                if column is not None:
                    text = rows[row][column][start:end]
                    at[column, end - len(text.lstrip()), end] = token
            kinds = encoded["token_type_ids"][row] if "token_type_ids" in encoded else [0] * len(ids)
            for column, several in enumerate(words[row]):
                for word in several:
                    here = at.get((column, word.start, word.end))
                    spaced = None if here is None else self._spaced(ids[here])
                    if here is not None and spaced is not None:
                        masked = [*ids[:here], self.tokenizer.mask_token_id, *ids[here + 1 :]]
                        yield _Copy((row, column, word.start), word.text, masked, kinds, here, spaced)

    def _spaced(self, piece: int) -> bool | None:
        return next((spaced for spaced, pieces in self.pieces.items() if piece in pieces), None)

    @torch.no_grad()
    def _logits(self, batch: Sequence[_Copy]) -> torch.Tensor:
        """Return logits of (copies, vocabulary) at the masked places."""
        longest, pad = max(len(copy.ids) for copy in batch), self.tokenizer.pad_token_id or 0
        filled = {
            "input_ids": [copy.ids + [pad] * (longest - len(copy.ids)) for copy in batch],
            "attention_mask": [[1] * len(copy.ids) + [0] * (longest - len(copy.ids)) for copy in batch],
        }
        if "token_type_ids" in self.tokenizer.model_input_names:
            filled["token_type_ids"] = [copy.kinds + [0] * (longest - len(copy.kinds)) for copy in batch]
        inputs = {key: torch.tensor(values, device=self.model.device) for key, values in filled.items()}
        rows = torch.arange(len(batch), device=self.model.device)
        at = torch.tensor([copy.at for copy in batch], device=self.model.device)
        with _head_at_masked_places(self.model, rows, at):
            logits = self.model(**inputs).logits
        return logits[:, 0] if logits.shape[1] == 1 else logits[rows, at]


@contextmanager
def _head_at_masked_places(model: Any, rows: torch.Tensor, at: torch.Tensor) -> Iterator[None]:
    """Run the output layer at the masked places alone: over whole texts its result would be 500 MB for 64 x 64
    tokens."""

    def pick(module: Any, args: Any) -> Any:
        hidden = args[0]
        return (hidden[rows, at][:, None], *args[1:]) if hidden.dim() == 3 else None

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
