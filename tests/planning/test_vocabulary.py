"""A tokenizer with more tokens than the model has rows for is refused by the plan."""

from __future__ import annotations

import pytest

from hf_stages import Recipe, Stage
from hf_stages.models.model_source import ModelSource
from hf_stages.planning.model_shapes import build_skeletons
from hf_stages.planning.vocabulary import check_vocabulary
from hf_stages.transforms import ResizeVocab
from tests.support import tiny

TOKENS = len(tiny.tokenizer())


def check(rows, tokenizer=None, *, stages=None, path=None):
    config = {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    config |= {"num_attention_heads": 2}
    source = ModelSource(config=config)
    recipe = Recipe(stages or [Stage("a", "1 steps")], model=source if path is None else ModelSource(path))
    check_vocabulary(recipe, tokenizer or tiny.tokenizer(), build_skeletons(recipe, source.skeleton()))


@pytest.mark.parametrize("rows", [10, TOKENS - 1])
def test_too_few_rows_are_refused(rows):
    with pytest.raises(ValueError, match=f"^stage 'a': model: its token embedding has {rows} rows, .* {TOKENS} tokens"):
        check(rows)


def test_resize_vocab_makes_room_from_its_stage_on():
    room = [ResizeVocab(to=TOKENS)]
    check(10, stages=[Stage("a", "1 steps", transforms=room), Stage("b", "1 steps")])
    with pytest.raises(ValueError, match=r"^stage 'a': .*"):
        check(10, stages=[Stage("a", "1 steps"), Stage("b", "1 steps", transforms=room)])
    with pytest.raises(ValueError, match=r"^stage 'b': .*ResizeVocab, to: 259"):
        check(TOKENS, stages=[Stage("a", "1 steps"), Stage("b", "1 steps", transforms=[ResizeVocab(to=200)])])


def test_enough_rows_and_models_without_tokens_pass():
    check(TOKENS)
    check(TOKENS + 61)
    check(10, tokenizer=object())
    recipe = Recipe([Stage("a", "1 steps")])
    check_vocabulary(recipe, tiny.tokenizer(), build_skeletons(recipe, tiny.vit()))


def test_added_tokens_without_a_row_give_a_warning():
    image, padding = tiny.tokenizer(), tiny.tokenizer()
    image.add_tokens(["<image>"])
    padding.add_special_tokens({"pad_token": "<padding>"})
    with pytest.raises(ValueError, match=f"{TOKENS + 1} tokens"):
        check(TOKENS, image)
    check(TOKENS, image, path="some/model")  # as it came from its maker
    with pytest.raises(ValueError, match=f"{TOKENS + 1} tokens"):
        check(TOKENS, padding, path="some/model")
