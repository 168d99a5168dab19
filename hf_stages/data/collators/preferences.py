"""Turns a chosen and a rejected answer to one prompt into two rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.data.collators._chat import check_template, read_answer, read_tools, render
from hf_stages.data.collators.base import IGNORED, BaseCollator, pad_batch


@dataclass(frozen=True)
class Preferences(BaseCollator):
    """Makes pairs of rows for ``DPO``: rows 2i and 2i + 1 are the chosen and the rejected answer of example i.

    Only the answers have labels. The columns are those of preference datasets: ``chosen`` and ``rejected``, with a
    ``prompt``, or conversations that begin alike. Text is joined as it is and gets an end-of-text token; conversations
    go through the tokenizer's chat template. An example of more than ``max_length`` tokens loses its end. If nothing of
    an answer would be left, that is an error.

    >>> Preferences(max_length=512).chosen
    'chosen'
    """

    max_length: int | None = None
    """The most tokens of prompt and answer. None: no limit."""
    prompt: str = "prompt"
    """The column of prompts."""
    chosen: str = "chosen"
    """The column of the better answers."""
    rejected: str = "rejected"
    """The column of the worse answers."""
    tokenizer: Any = None
    """A tokenizer, with a chat template if there are conversations. None: the trainer's."""

    in_pairs = True

    def __post_init__(self) -> None:
        value = self.max_length
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
            raise ValueError(f"Preferences: max_length: expected a whole number of at least 2, got {value!r}")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.prompt, self.chosen, self.rejected, "tools"})

    def build(self, tokenizer: Any = None, model: Any = None) -> Preferences:
        ready = super().build(tokenizer, model)
        if ready.tokenizer is None:
            raise ValueError("Preferences: tokenizer: missing; give the recipe or the trainer a tokenizer")
        return ready

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        return pad_batch([run for row in rows for run in self._pair(row)], self.tokenizer)

    def _pair(self, row: Any) -> list[dict[str, torch.Tensor]]:
        for key in (self.chosen, self.rejected):
            if not isinstance(row, Mapping) or row.get(key) is None:
                has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise ValueError(
                    f"Preferences: expected rows with {self.chosen!r} and {self.rejected!r}, got {has}; name the "
                    "columns: Preferences(chosen=..., rejected=...)"
                )
        found = [self._answer(row, row.get(self.prompt), row[key], key) for key in (self.chosen, self.rejected)]
        runs = []
        for (ids, learned), key in zip(found, (self.chosen, self.rejected), strict=True):
            ids, learned = ids[: self.max_length], learned[: self.max_length]
            if not any(learned[1:]):
                raise ValueError(
                    f"Preferences: {key}: nothing of the answer is left within max_length={self.max_length} tokens; "
                    "raise it, or filter such rows out"
                    if self.max_length is not None
                    else f"Preferences: {key}: expected an answer, got {row[key]!r}"
                )
            labels = [token if learn else IGNORED for token, learn in zip(ids, learned, strict=True)]
            runs.append({"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)})
        return runs

    def _answer(self, row: Mapping[str, Any], prompt: Any, answer: Any, key: str) -> tuple[list[int], list[bool]]:
        """Return the tokens of prompt and answer, and which of them are the answer's."""
        against = self.rejected if key == self.chosen else self.chosen
        other = read_answer(row[against])
        prompt, answer = (read_answer(value) for value in (prompt, answer))
        if isinstance(answer, str) and isinstance(other, str):
            return self._text(prompt or "", answer)
        check_template("Preferences", self.tokenizer)
        for name, value in ((self.prompt, prompt or []), (key, answer), (against, other)):
            _check_messages(name, value)
        same = 0 if prompt else _common_messages(answer, other)
        messages = [*(prompt or []), *answer]
        given = len(prompt or []) + same
        wanted = [i >= given and message["role"] == "assistant" for i, message in enumerate(messages)]
        done = render("Preferences", self.tokenizer, messages, read_tools("Preferences", row.get("tools")), wanted)
        return done.ids, done.learned

    def _text(self, prompt: Any, answer: str) -> tuple[list[int], list[bool]]:
        if not isinstance(prompt, str):
            raise ValueError(f"Preferences: {self.prompt}: expected text, as the answers are, got {prompt!r}")
        done = self.tokenizer(prompt + answer, return_offsets_mapping=True)
        ids = list(done["input_ids"])
        # A special token has an empty span; one that ends the text is the answer's.
        learned = [end > len(prompt) for _, end in done["offset_mapping"]]
        end = self.tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] != end):
            ids.append(end)
            learned.append(True)
        elif ids:
            learned[-1] = True
        return ids, learned


def _check_messages(name: str, value: Any) -> None:
    whole = isinstance(value, list) and all(isinstance(message, Mapping) and "role" in message for message in value)
    if not whole:
        raise ValueError(
            f"Preferences: {name}: expected text in all columns, or in all of them messages such as {{role: assistant, "
            f"content: ...}}, got {value!r}"
        )


def _common_messages(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the messages that both begin with. The last message of each is an answer, also where both are equal."""
    same = 0
    for a, b in zip(one[:-1], other[:-1], strict=False):
        if a != b:
            break
        same += 1
    return same
