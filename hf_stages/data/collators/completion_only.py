"""Learns what the assistant says, not what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.data.collators._chat import check_template, collate_conversations
from hf_stages.data.collators.base import BaseCollator


@dataclass(frozen=True)
class CompletionOnly(BaseCollator):
    """Renders conversations through the tokenizer's chat template; only the assistant's tokens have labels.

    Rows hold ``messages`` (and ``tools``, where there are some), as ``apply_chat_template`` takes them, or as JSON text.
    Keys without a value are dropped: tables add them to rows that lack them.
    """

    collator: Any = None
    """Another collator that makes the batch of ``input_ids`` and ``labels``. None: they are padded."""
    last: bool = False
    """Only the last answer of each conversation."""
    messages: str = "messages"
    """The column of conversations."""
    tokenizer: Any = None
    """With a chat template; the trainer's, if none is given."""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.messages, "tools"})

    def build(self, tokenizer: Any = None, model: Any = None) -> CompletionOnly:
        ready = super().build(tokenizer, model)
        check_template("CompletionOnly", ready.tokenizer)
        return ready

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        return collate_conversations(self, rows, self._wanted)

    def _wanted(self, messages: Sequence[Mapping[str, Any]]) -> list[bool]:
        answers = [message["role"] == "assistant" for message in messages]
        end = max((i for i, answer in enumerate(answers) if answer), default=-1)
        return [answer and (i == end or not self.last) for i, answer in enumerate(answers)]
