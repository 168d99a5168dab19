"""Settings, data and models that Augment refuses, in words."""

from __future__ import annotations

import re

import datasets
import pytest
from datasets import Dataset
from transformers import (
    BertModel,
)

from hf_stages.data import Augment
from tests.data.augmentation.tiny_models import (
    PIECES,
    SPECIAL,
    TEXTS,
    WORDS,
    bert,
    data,
    padded_by,
    wordpieces,
)
from tests.support.tiny import llama


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0}, "p: expected a probability above 0 and at most 1, got 0"),
        ({"p": 1.5}, "p: expected a probability"),
        ({"n": 0}, "n: expected a whole number of at least 1, got 0"),
        ({"k": True}, "k: expected a whole number"),
        ({"method": "glove"}, "method: expected 'mlm' or 'embeddings', got 'glove'"),
        ({"text": ("a", "b", "c")}, "text: expected a column or a pair of columns"),
        ({"stopwords": "the"}, "stopwords: expected a list of words"),
        ({"tokenizer": None}, "tokenizer: missing; a model that is loaded already"),
        ({"model": None}, "model: missing; give a masked language model"),
        ({"model": None, "method": "embeddings"}, "model: missing"),
    ],
)
def test_refuses_settings(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**{"model": model, "tokenizer": tokenizer, "text": "text", **settings})


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (data([]), {}, "the dataset has no rows"),
        (data(), {"text": "question"}, "there is no column 'question'; there are text, label, id"),
        (data(), {"text": None}, "text: missing; name the column of text"),
        (data(), {"text": "label"}, "'label' holds int64, expected text"),
        (Dataset.from_dict({"input_ids": [[1]]}), {}, "there are input_ids; it is tokenized already"),
        (data().add_column("input_ids", [[1]] * 4), {}, "input_ids would be copied as they are, of the original text"),
        (data([*TEXTS, None]), {}, "row 4: 'text' is empty (None)"),
        (data().to_iterable_dataset(), {}, "expected a datasets.Dataset, got IterableDataset"),
        (datasets.DatasetDict(train=data()), {}, "got DatasetDict; give one of its splits"),
        (data(["the", "7"]), {"originals": False}, "no new example came out: no word has a candidate"),
        (data(), {"vectors": "nowhere.txt"}, "vectors: there is no file nowhere.txt"),
    ],
)
def test_refuses_data(make, rows, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**settings)(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"tokenizer": wordpieces(mask_token=None)}, "has no mask token"),
        (lambda: {"model": padded_by(3)}, "padding is token 0 of the tokenizer, 3 of the model"),
        (lambda: {"model": bert(BertModel)}, "BertModel does not predict masked tokens"),
        (lambda: {"model": llama()}, "LlamaForCausalLM does not predict masked tokens"),
        (lambda: {"model": bert(vocab=20)}, f"the tokenizer has {len(SPECIAL) + len(PIECES)} tokens, the model 20"),
        (lambda: {"stopwords": [*WORDS, "the", "not", "under"]}, "none of its pieces is a whole word"),
    ],
)
def test_refuses_models(model, tokenizer, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**{"model": model, "tokenizer": tokenizer, "text": "text", **change()})(data())


def test_refuses_a_checkpoint_whose_head_would_be_random(tmp_path, tokenizer):
    bert(BertModel).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no masked-LM head \(cls\.predictions\..* would be random\)"):
        Augment(str(tmp_path), text="text")(data())
    assert len(Augment(str(tmp_path), text="text", method="embeddings")(data())) > 4
