"""Turns conversations into tokens, and marks the tokens that the assistant wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from hf_stages.data.collators.base import IGNORED, BaseCollator, pad_batch

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = Sequence[Mapping[str, Any]]
Wanted = Sequence[bool]
"""For each message, whether its tokens are to be learned."""


class Rendered(NamedTuple):
    """Tokens of a conversation, and for each whether it is to be learned."""

    ids: list[int]
    learned: list[bool]


def check_template(where: str, tokenizer: Any) -> None:
    if tokenizer is None:
        raise ValueError(f"{where}: tokenizer: missing; use {where}(...).build(tokenizer), or give tokenizer=")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{where}: tokenizer: expected one with a chat template, {type(tokenizer).__name__} has none; set "
            "tokenizer.chat_template (models that were tuned to chat bring one), or train on plain text"
        )


def read_conversation(where: str, row: Any, key: str) -> tuple[list[dict[str, Any]], Any]:
    """Return messages and tools of a row, without the empty fields that a table adds to rows that lack them."""
    if not isinstance(row, Mapping) or key not in row:
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(
            f"{where}: expected rows with a column {key!r} of messages, got {has}; name it: {where}(messages=...)"
        )
    messages, tools = _messages(where, key, row[key]), read_tools(where, row.get("tools"))
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: {key}: expected a list of messages, got {row[key]!r}")
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError(f"{where}: {key}: expected messages such as {{role: user, content: ...}}, got {message!r}")
    return messages, tools


def read_tools(where: str, value: Any) -> Any:
    """Return the tools, which may be JSON text as a whole or one by one; None where there are none."""
    if isinstance(value, str) and not value.strip():
        return None
    tools = _json(where, "tools", value) if isinstance(value, str) else _without_empty_fields(value)
    if isinstance(tools, list):
        tools = [_json(where, "tools", tool) if isinstance(tool, str) else tool for tool in tools]
    return tools or None


def read_answer(value: Any) -> Any:
    """Return messages or text. A table may hold messages as JSON text; JSON of anything else is text."""
    if not isinstance(value, str):
        return _without_empty_fields(value)
    try:
        found = json.loads(value) if value.lstrip()[:1] == "[" else None
    except ValueError:
        return value
    return _messages("", "", value) if _are_messages(found) else value


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _messages(where: str, key: str, value: Any) -> Any:
    """Read messages, also from JSON text.

    There null stays in the arguments of a call, but a message's key of null is dropped.
    """
    if not isinstance(value, str):
        return _without_empty_fields(value)
    found = _json(where, key, value)
    whole = isinstance(found, list) and all(isinstance(message, dict) for message in found)
    return [{k: v for k, v in message.items() if v is not None} for message in found] if whole else found


def _json(where: str, key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: {key}: expected a list or its JSON text, got {text[:80]!r} ({error})") from error


def _without_empty_fields(value: Any) -> Any:
    """Drop keys without a value, which a table adds."""
    if isinstance(value, Mapping):
        return {key: _without_empty_fields(item) for key, item in value.items() if item is not None}
    return [_without_empty_fields(item) for item in value] if isinstance(value, list | tuple) else value


def render(where: str, tokenizer: Any, messages: Messages, tools: Any, wanted: Wanted) -> Rendered:
    """The conversation's tokens, and which of them are of the messages that are wanted.

    A template that marks what the assistant says with ``{% generation %}`` is believed. Else the text is rendered up to
    each wanted message with the prompt for an answer, and up to its end: what lies between is learned.
    """
    if _GENERATION.search(tokenizer.get_chat_template(tools=tools)):
        found = _from_generation_marks(where, tokenizer, messages, tools, wanted)
        if found is not None:
            return found
    return _from_prefixes(where, tokenizer, messages, tools, wanted)


def _from_generation_marks(
    where: str, tokenizer: Any, messages: Messages, tools: Any, wanted: Wanted
) -> Rendered | None:
    """Read the template's generation marks. Return None where they do not tell the wanted messages from the others."""
    done = _apply_template(
        where, tokenizer, messages, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, marked = list(done["input_ids"]), [bool(m) for m in done["assistant_masks"]]
    answers = [w for w, message in zip(wanted, messages, strict=True) if message["role"] == "assistant"]
    if any(answers) and not any(marked):
        raise ValueError(
            f"{where}: the template has {{% generation %}}, but marks nothing in a conversation of {len(messages)} "
            "messages; put the block around what the assistant says"
        )
    if all(answers) or not any(answers):
        return Rendered(ids, [m and any(answers) for m in marked])
    number, learned, before = -1, [], False
    for mark in marked:
        number += mark and not before
        learned.append(bool(mark and number < len(answers) and answers[number]))
        before = mark
    return Rendered(ids, learned) if number + 1 == len(answers) else None


def _from_prefixes(where: str, tokenizer: Any, messages: Messages, tools: Any, wanted: Wanted) -> Rendered:
    whole = _apply_template(where, tokenizer, messages, tools, tokenize=False)
    spans = []
    for i in (i for i, w in enumerate(wanted) if w):
        before = _apply_template(where, tokenizer, messages[:i], tools, tokenize=False, add_generation_prompt=True)
        until = _apply_template(where, tokenizer, messages[: i + 1], tools, tokenize=False)
        if not (until.startswith(before) and whole.startswith(until)):
            raise ValueError(_inconsistent(where, i, until.startswith(before)))
        spans.append((len(before), len(until)))
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{where}: tokenizer: expected a fast one, which tells where in the text a token lies; got "
            f"{type(tokenizer).__name__}"
        )
    done = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    learned = [any(start <= at < end for start, end in spans) for at, _ in done["offset_mapping"]]
    return Rendered(list(done["input_ids"]), learned)


def _inconsistent(where: str, i: int, prompt_fits: bool) -> str:
    what = (
        f"a conversation changes its earlier text as it grows (found up to message {i + 1}; some templates drop the "
        "reasoning of earlier answers)"
        if prompt_fits
        else f"what is rendered as the prompt for message {i + 1} is not how its text begins"
    )
    return (
        f"{where}: the chat template is not prefix-consistent: {what}, so there is no telling which tokens the "
        "assistant wrote; put {% generation %} ... {% endgeneration %} around them in the template, or train on rows "
        "that end with their only answer"
    )


def _apply_template(where: str, tokenizer: Any, messages: Messages, tools: Any, **how: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), tools=tools, **how)
    except Exception as error:  # jinja's, and whatever a template's own code raises
        end = f" up to message {len(messages)}" if messages else " before its first message"
        raise ValueError(f"{where}: the chat template cannot render a conversation{end}: {error}") from error


def collate_conversations(
    collating: Any, rows: Sequence[Any], wanted: Callable[[Messages], Wanted]
) -> dict[str, torch.Tensor]:
    """Make a batch whose labels are -100 outside the wanted messages."""
    where, tokenizer = type(collating).__name__, collating.tokenizer
    check_template(where, tokenizer)
    made = []
    for row in rows:
        messages, tools = read_conversation(where, row, collating.messages)
        ids, learned = render(where, tokenizer, messages, tools, wanted(messages))
        labels = [token if learn else IGNORED for token, learn in zip(ids, learned, strict=True)]
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    if collating.collator is None:
        return pad_batch([{key: torch.tensor(row[key]) for key in ("input_ids", "labels")} for row in made], tokenizer)
    if isinstance(collating.collator, BaseCollator):
        return collating.collator(made)
    # Other collators do not pad labels, or write their own: they get none.
    batch = collating.collator([{key: row[key] for key in ("input_ids", "attention_mask")} for row in made])
    return {**batch, "labels": _labels_where_tokens_are(where, collating.collator, batch, made)}


def _labels_where_tokens_are(
    where: str, collator: Any, batch: Mapping[str, Any], made: Sequence[Mapping[str, list[int]]]
) -> torch.Tensor:
    """Return labels that stand where the collator has put their tokens."""
    ids: Any = batch.get("input_ids")
    mask: Any = batch.get("attention_mask")
    given = torch.tensor([token for row in made for token in row["input_ids"]])
    fits = torch.is_tensor(ids) and torch.is_tensor(mask) and ids.shape == mask.shape and len(ids) == len(made)
    if not fits or not torch.equal(ids[mask.bool()], given):
        raise ValueError(
            f"{where}: collator: expected one that pads input_ids and gives an attention_mask, "
            f"{type(collator).__name__} does more (it masks, cuts or packs); leave it out, or put it around: "
            "Packed(512, CompletionOnly())"
        )
    labels = torch.full_like(ids, IGNORED)
    labels[mask.bool()] = torch.tensor([label for row in made for label in row["labels"]])
    return labels
