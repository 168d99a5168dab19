"""What the assistant says, and nothing else, has labels."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.data import CompletionOnly, Lengths, Packed, ToolCallsOnly
from tests.support import tiny

HEAD = "{% if tools %}[tools {{ tools | tojson }}]{% endif %}{% for m in messages %}"
SAID = (
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL {{ c.function.name }}{{ c.function.arguments | tojson "
    "}}{% endfor %}<end>"
)
TAIL = "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
PLAIN = HEAD + "[{{ m.role }}]" + SAID + TAIL
MARKED = (
    HEAD
    + "[{{ m.role }}]{% if m.role == 'assistant' %}{%- generation -%}"
    + SAID
    + "{% endgeneration %}{% else %}"
    + SAID
    + "{% endif %}"
    + TAIL
)

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "héllo?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "Let me see. ", "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two."},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
    }
]
CALLED = 'Let me see. CALL add{"a": 1}<end>'


def said(collator: Any, rows: list[dict[str, Any]], tokenizer: Any) -> list[str]:
    """The text with labels, stretches apart by |."""
    batch = collator.build(tokenizer)(rows)
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert torch.equal(ids[labels != -100], labels[labels != -100])
        text, before = "", True
        for token, label in zip(ids, labels, strict=True):
            if label != -100:
                text += ("" if before else "|") + chr(0xE000 + int(token))
            before = bool(label != -100) or not text
        found.append("|".join(tokenizer.decode([ord(c) - 0xE000 for c in part]) for part in text.split("|")))
    return found


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["prefixes", "marks"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_only_answers(template: str, side: str) -> None:
    tokenizer = tiny.tokenizer(template, padding_side=side)
    rows = [{"messages": TALK, "tools": TOOLS}, {"messages": TALK[:3]}, {"messages": TALK[:2]}]
    assert said(CompletionOnly(), rows, tokenizer) == [f"Yes.<end>|{CALLED}|Two.<end>", "Yes.<end>", ""]
    assert said(CompletionOnly(last=True), rows, tokenizer) == ["Two.<end>", "Yes.<end>", ""]
    assert said(ToolCallsOnly(), rows, tokenizer) == [CALLED, "", ""]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["prefixes", "marks"])
def test_tokens_are_the_templates(template: str) -> None:
    tokenizer = tiny.tokenizer(template)
    batch = CompletionOnly().build(tokenizer)([{"messages": TALK}])
    ids = tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
    assert batch["input_ids"].tolist() == [ids]
    assert batch["attention_mask"].all()


def test_tables_and_json_text() -> None:
    """A table adds empty keys to messages that lack them, and JSON keeps what a table's types cannot."""
    tokenizer = tiny.tokenizer(PLAIN)
    rows = list(Dataset.from_list([{"talk": TALK, "tools": TOOLS}]))
    assert rows[0]["talk"][0]["tool_calls"] is None
    text = [{"talk": json.dumps(TALK), "tools": json.dumps(TOOLS)}]
    expected = CompletionOnly().build(tokenizer)([{"messages": TALK, "tools": TOOLS}])
    for given in (rows, text):
        found = CompletionOnly(messages="talk").build(tokenizer)(given)
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["labels"], expected["labels"])


def test_json_text_is_taken_as_it_stands() -> None:
    """A call with null for an argument is to be learned with it; tools may each be JSON text."""
    tokenizer = tiny.tokenizer(PLAIN)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": None}}}
    talk = [TALK[1], {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = json.dumps(talk)
    (learned,) = said(CompletionOnly(), [{"messages": text}], tokenizer)
    assert '{"a": null}' in learned
    ready = CompletionOnly().build(tokenizer)
    whole = ready([{"messages": text, "tools": TOOLS}])["input_ids"]
    for tools in (json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS]):
        assert torch.equal(ready([{"messages": text, "tools": tools}])["input_ids"], whole)
    without = ready([{"messages": text}])["input_ids"]
    for tools in ("", "[]", [], None):
        assert torch.equal(ready([{"messages": text, "tools": tools}])["input_ids"], without)
    with pytest.raises(ValueError, match="CompletionOnly: messages: expected a list or its JSON text, got 'hello'"):
        ready([{"messages": "hello"}])


def test_templates_that_rewrite_the_past_are_refused() -> None:
    """As those do that drop the reasoning of earlier answers."""
    forgets = (
        HEAD
        + "[{{ m.role }}]{% if m.role == 'assistant' and not loop.last %}(cut){% else %}"
        + SAID
        + "{% endif %}"
        + TAIL
    )
    with pytest.raises(
        ValueError, match="CompletionOnly: the chat template is not prefix-consistent: a conversation changes"
    ):
        said(CompletionOnly(), [{"messages": TALK}], tiny.tokenizer(forgets))
    assert said(CompletionOnly(last=True), [{"messages": TALK}], tiny.tokenizer(forgets)) == ["Two.<end>"]
    thinks = PLAIN.replace("[assistant]", "[assistant]<think>")
    with pytest.raises(ValueError, match="what is rendered as the prompt for message 3 is not how its text begins"):
        said(CompletionOnly(), [{"messages": TALK}], tiny.tokenizer(thinks))
    marks_nothing = PLAIN + "{% generation %}{% endgeneration %}"
    with pytest.raises(ValueError, match="marks nothing"):
        said(CompletionOnly(), [{"messages": TALK}], tiny.tokenizer(marks_nothing))


@pytest.mark.parametrize("collator", [CompletionOnly, ToolCallsOnly])
def test_bad_input(collator: type, tmp_path) -> None:
    tokenizer = tiny.tokenizer(PLAIN)
    with pytest.raises(
        ValueError,
        match=r"expected one with a chat template, .* has none",
    ):
        collator().build(tiny.tokenizer())
    with pytest.raises(ValueError, match="tokenizer: missing"):
        collator()([{"messages": TALK}])
    ready = collator().build(tokenizer)
    for row, said in {
        "expected rows with a column 'messages'": {"text": "a"},
        "messages: expected a list of messages": {"messages": []},
        "expected messages such as": {"messages": ["hello"]},
    }.items():
        with pytest.raises(ValueError, match=row):
            ready([said])
    with pytest.raises(ValueError, match="cannot render a conversation up to message 1"):
        collator().build(tiny.tokenizer("{{ raise_exception('no') }}"))([{"messages": TALK[:1]}])
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    made = StagedTrainer(
        tiny.llama(),
        args,
        stages=[Stage("a", "1 steps", data_collator=collator())],
        train_dataset=[{"messages": TALK}],
        processing_class=tiny.tokenizer(),
    )
    with pytest.raises(ValueError, match=r"stage 'a': data_collator: .*: tokenizer: expected one with a chat template"):
        made.plan()


def test_wrapped_collators() -> None:
    tokenizer = tiny.tokenizer(PLAIN)
    rows = [{"messages": TALK}, {"messages": TALK[:3]}]
    answers = [f"Yes.<end>|{CALLED}|Two.<end>", "Yes.<end>"]
    assert said(CompletionOnly(DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)), rows, tokenizer) == answers
    assert said(Lengths(47, CompletionOnly()), rows, tokenizer) == ["Yes.<end>", "Yes.<end>"]
    packed = Packed(200, CompletionOnly(), shift=True, mask="positions")
    assert said(packed, rows, tokenizer) == [f"{answers[0]}|{answers[1]}"]
    for inner in (DataCollatorForLanguageModeling(tokenizer, mlm=False), DataCollatorWithPadding(tokenizer)):
        assert said(CompletionOnly(inner), rows, tokenizer) == answers
    assert said(CompletionOnly(Packed(200, shift=True, mask="positions")), rows, tokenizer) == [
        f"{answers[0]}|{answers[1]}"
    ]
    with pytest.raises(ValueError, match="DataCollatorForLanguageModeling does more"):
        said(CompletionOnly(DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.9)), rows, tokenizer)


def test_a_stage_of_conversations(tmp_path) -> None:
    """Trainer drops columns that the model does not take; the collator's own stay."""
    data = Dataset.from_list([{"messages": TALK, "other": 1}] * 4)
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=1e-2
    )
    stage = Stage("chat", "2 steps", data_collator=Packed(400, CompletionOnly()))
    model = tiny.llama(vocab_size=260, max_position_embeddings=512)
    made = StagedTrainer(
        model, args, stages=[stage], train_dataset=data, eval_dataset=data, processing_class=tiny.tokenizer(PLAIN)
    )
    made.train()
    summary = json.loads((tmp_path / "01-chat" / "stage.json").read_text())
    assert summary["tokens"] == 4 * len(tiny.tokenizer(PLAIN).apply_chat_template(TALK, return_dict=True)["input_ids"])
