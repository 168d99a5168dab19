"""Labels what the assistant says in a conversation, and nothing else."""

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

    Rows hold ``messages`` (and ``tools``, where there are some), as ``apply_chat_template`` takes them, or as JSON
    text. Keys without a value are dropped, because tables add them to rows that lack them.

    >>> CompletionOnly(last=True).messages
    'messages'
    """

    collator: Any = None
    """Another collator that makes the batch from ``input_ids`` and ``labels``. None: they are padded."""
    last: bool = False
    """Whether only the last answer of each conversation has labels."""
    messages: str = "messages"
    """The column of conversations."""
    tokenizer: Any = None
    """A tokenizer with a chat template. None: the trainer's."""

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
