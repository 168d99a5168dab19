"""Finds the whole words in a tokenizer's vocabulary, and the nearest neighbours of words by vectors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_stages.data.augmentation._words import is_usable_word, pick_candidates

_ROOM = 4
"""How many times k words are ranked: forms that differ only in case count once, and the word itself does not count."""
_QUERIES = 64
Vectors = tuple[Sequence[str], torch.Tensor, Sequence[Collection[int]]]
"""The words that have a vector, their vectors, and for each the rows of the table that may not be its neighbours."""


class Lexicon:
    """The pieces of a vocabulary that are whole words. Each is tokenized to find out, for wordpieces, BPE and unigrams.

    ``spaced`` holds their numbers after a space, ``bare`` those at the start of a text; these differ in byte-level BPE
    (RoBERTa). -1 stands where the word is not a single piece.
    """

    def __init__(self, tokenizer: Any, stopwords: Collection[str]) -> None:
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
        texts = [text.strip() for text in tokenizer.batch_decode([[i] for i in ids])]
        known = {text: i for i, text in zip(ids, texts, strict=True) if is_usable_word(text, stopwords)}
        self.words: list[str] = []
        self.spaced: list[int] = []
        self.bare: list[int] = []
        for word, behind, alone in zip(known, self.pieces(list(known)), self._tokens(list(known)), strict=True):
            if len(behind) == 1:
                self.words.append(word)
                self.spaced.append(behind[0])
                self.bare.append(alone[0] if len(alone) == 1 else -1)

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """Return each word's pieces after a space."""
        before = len(self._tokens(["a"])[0])
        return [tokens[before:] for tokens in self._tokens([f"a {word}" for word in words])]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


class Neighbours:
    """Finds the words nearest to a word by cosine, and remembers them."""

    def __init__(
        self, words: Sequence[str], table: torch.Tensor, vectors_of: Callable[[Sequence[str]], Vectors], k: int
    ) -> None:
        self.words = words
        self.table = torch.nn.functional.normalize(table.float(), dim=-1)
        self.vectors_of = vectors_of
        self.k = k
        self.known: dict[str, tuple[str, ...]] = {}

    def __call__(self, word: str) -> tuple[str, ...]:
        return self.known[word]

    @torch.no_grad()
    def learn(self, words: Collection[str]) -> None:
        """Find the neighbours of words that are not known yet. Doing it for many words at once makes it fast."""
        new = sorted(set(words) - set(self.known))
        for start in range(0, len(new), _QUERIES):
            part = new[start : start + _QUERIES]
            found, vectors, own = self.vectors_of(part)
            self.known.update(dict.fromkeys(part, ()))
            if not found:
                continue
            scores = torch.nn.functional.normalize(vectors.float(), dim=-1) @ self.table.T
            ranks = scores.topk(min(_ROOM * self.k, len(self.words))).indices.tolist()
            for word, rank, not_these in zip(found, ranks, own, strict=True):
                self.known[word] = pick_candidates(word, (self.words[i] for i in rank if i not in not_these), self.k)


def by_embeddings(model: Any, lexicon: Lexicon, k: int) -> Neighbours:
    """Make neighbours from a model's input embeddings.

    The vector of a word of several pieces is their mean, so it is close to each of them for that reason alone. Its own
    pieces are no candidates: not ``serf`` for ``serf ##dom``.
    """
    weight = model.get_input_embeddings().weight.detach()
    places = {piece: at for at, piece in enumerate(lexicon.spaced)}

    def vectors_of(words: Sequence[str]) -> Vectors:
        pieces = lexicon.pieces(words)
        vectors = torch.stack([weight[ids].float().mean(0) for ids in pieces])
        return words, vectors, [{places[i] for i in ids if i in places} for ids in pieces]

    return Neighbours(lexicon.words, weight[lexicon.spaced], vectors_of, k)


def by_file(path: str | Path, stopwords: Collection[str], k: int) -> Neighbours:
    """Make neighbours from a text file of vectors, a word and its numbers per line (GloVe; word2vec's first line is
    skipped)."""
    rows: dict[str, np.ndarray] = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            word, _, rest = line.rstrip().partition(" ")
            if (number == 1 and rest.strip().isdecimal()) or not is_usable_word(word, stopwords):
                continue
            try:
                rows[word] = np.array(rest.split(), np.float32)
            except ValueError as error:
                raise ValueError(
                    f"Augment: vectors: {path}, line {number}: expected a word and numbers: {error}"
                ) from error
    if len({len(row) for row in rows.values()}) != 1:
        raise ValueError(f"Augment: vectors: {path}: expected a word and equally many numbers on every line")
    table = torch.from_numpy(np.stack(list(rows.values())))
    places = {word: at for at, word in enumerate(rows)}

    def vectors_of(words: Sequence[str]) -> Vectors:
        at = {word: places.get(word, places.get(word.lower())) for word in words}
        found = {word: place for word, place in at.items() if place is not None}
        return list(found), table[list(found.values())], [{place} for place in found.values()]

    return Neighbours(list(rows), table, vectors_of, k)
