"""Labels the calls of tools in a conversation, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.data.collators._chat import check_template, collate_conversations
from hf_stages.data.collators.base import BaseCollator


@dataclass(frozen=True)
class ToolCallsOnly(BaseCollator):
    """Renders conversations through the tokenizer's chat template; only messages with ``tool_calls`` have labels.

    Rows hold ``messages`` and ``tools``, as ``apply_chat_template`` takes them, or as JSON text. Keys without a value
    are dropped, because tables add them to rows that lack them. A conversation without a call teaches nothing.

    >>> ToolCallsOnly(messages="chat").messages
    'chat'
    """

    collator: Any = None
    """Another collator that makes the batch from ``input_ids`` and ``labels``. None: they are padded."""
    messages: str = "messages"
    """The column of conversations."""
    tokenizer: Any = None
    """A tokenizer with a chat template. None: the trainer's."""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.messages, "tools"})

    def build(self, tokenizer: Any = None, model: Any = None) -> ToolCallsOnly:
        ready = super().build(tokenizer, model)
        check_template("ToolCallsOnly", ready.tokenizer)
        return ready

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        return collate_conversations(self, rows, _wanted)


def _wanted(messages: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [message["role"] == "assistant" and bool(message.get("tool_calls")) for message in messages]
