from __future__ import annotations

import json

import pytest

from hf_stages.data import Lengths, Packed, Preferences
from hf_stages.data.collators.base import columns_read, find_pair_collator
from hf_stages.data.collators.progress import AtProgress
from hf_stages.data.source_column import SourceCollator
from tests.support import tiny

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif "
    "%}"
)
ASKED = [{"role": "user", "content": "hi?"}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def learned(batch, tokenizer):
    return [tokenizer.decode([t for t in row.tolist() if t != -100]) for row in batch["labels"]]


def whole(batch, tokenizer):
    return [
        tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_text():
    tokenizer = tiny.tokenizer()
    batch = Preferences().build(tokenizer)([{"prompt": "a: ", "chosen": "yes", "rejected": "no"}] * 2)
    assert learned(batch, tokenizer) == ["yes<end>", "no<end>"] * 2
    assert whole(batch, tokenizer) == ["a: yes<end>", "a: no<end>"] * 2
    short = Preferences(max_length=4).build(tokenizer)([{"prompt": "a: ", "chosen": "yes", "rejected": "no"}])
    assert learned(short, tokenizer) == ["y", "n"]


@pytest.mark.parametrize("shared", [False, True])
def test_conversations(shared):
    """With a prompt of their own, or beginning alike: the same batch."""
    tokenizer = tiny.tokenizer(TEMPLATE)
    row = {"chosen": answer("yes"), "rejected": answer("no")}
    row = {k: ASKED + v for k, v in row.items()} if shared else {"prompt": ASKED, **row}
    batch = Preferences().build(tokenizer)([row])
    assert learned(batch, tokenizer) == ["yes", "no"]
    assert whole(batch, tokenizer) == ["<user>hi?<assistant>yes", "<user>hi?<assistant>no"]


def test_an_answer_within_what_both_share_is_not_learned():
    tokenizer = tiny.tokenizer(TEMPLATE)
    begun = [*ASKED, *answer("what?"), *ASKED]
    batch = Preferences().build(tokenizer)([{"chosen": begun + answer("yes"), "rejected": begun + answer("yes")}])
    assert learned(batch, tokenizer) == ["yes", "yes"]


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"chosen": "a"}, {}, "expected rows with 'chosen' and 'rejected', got chosen"),
        ({"prompt": "long", "chosen": "a", "rejected": "b"}, {"max_length": 3}, "nothing of the answer"),
        ({"prompt": ASKED, "chosen": "a", "rejected": "b"}, {}, "expected text"),
        ({"chosen": answer("a"), "rejected": answer("b")}, {}, "chat template"),
    ],
)
def test_refused(row, options, words):
    with pytest.raises(ValueError, match=words):
        Preferences(**options).build(tiny.tokenizer())([row])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": answer("a"), "rejected": answer("b")}, "prompt: expected text in all columns"),
        ({"chosen": "a", "rejected": answer("b")}, "chosen: expected text in all columns"),
        ({"chosen": answer("a"), "rejected": "b"}, "rejected: expected text in all columns"),
        ({"chosen": [{"content": "a"}], "rejected": answer("b")}, "chosen: expected text in all"),
        ({"chosen": 3, "rejected": 4}, "chosen: expected text in all columns"),
    ],
)
def test_text_and_messages_do_not_mix(row, words):
    with pytest.raises(ValueError, match=words):
        Preferences().build(tiny.tokenizer(TEMPLATE))([row])


def test_json_that_is_no_conversation_is_text():
    """Calls as text begin like messages as JSON."""
    tokenizer = tiny.tokenizer(TEMPLATE)
    row = {"prompt": "f? ", "chosen": '[{"name": "f"}]', "rejected": "[]"}
    assert learned(Preferences().build(tokenizer)([row]), tokenizer) == ['[{"name": "f"}]<end>', "[]<end>"]
    both = {"prompt": ASKED, "chosen": answer("yes"), "rejected": answer("no")}
    expected = Preferences().build(tokenizer)([both])["input_ids"]
    given = {key: json.dumps(value) for key, value in both.items()}
    assert Preferences().build(tokenizer)([given])["input_ids"].tolist() == expected.tolist()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_length"):
        Preferences(max_length=1)
    with pytest.raises(ValueError, match="tokenizer: missing"):
        Preferences().build(None)


def test_pairs_are_not_torn_apart():
    """Packed rows would be compared in place of answers, and the loss would look like one."""
    for wrong in (
        lambda: Packed(64, Preferences()),
        lambda: Packed(64, Lengths(64, Preferences(), longer="error")),
        lambda: Lengths(8, Preferences(), longer="split"),
        lambda: Lengths(8, Preferences()),
    ):
        with pytest.raises(ValueError, match="Preferences gives pairs of rows"):
            wrong()
    tokenizer = tiny.tokenizer()
    batch = Lengths(64, Preferences(), longer="error", steps_of=8).build(tokenizer)(
        [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    )
    assert batch["labels"].shape == (2, 8)


def test_pairs_are_found_at_any_depth():
    """Whoever counts rows of a batch must know, whatever carries the collator."""
    inner = Preferences()
    for outer in (inner, SourceCollator(AtProgress(inner, inner)), Lengths(8, inner, longer="error")):
        assert find_pair_collator(outer) is inner
        assert {"chosen", "rejected"} <= columns_read(outer)
    assert find_pair_collator(Lengths(8)) is None
