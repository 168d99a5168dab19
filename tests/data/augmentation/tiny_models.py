"""Tokenizers, models and rows that are small enough to augment in a test."""

from __future__ import annotations

import re

import datasets
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

NAMES = "cat dog bird fish horse runs sleeps eats jumps house tree river road red green blue small old snow ice"
WORDS = NAMES.split()
PIECES = [*WORDS, "the", "not", "under", "##board", "##ing", "[unused1]", "!", ",", "7", "x"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["The old cat sleeps under the red tree!", "A DOG, not 7 fish, jumps.", "Snowboard the river", "the cat runs"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def wordpieces(**more) -> PreTrainedTokenizerFast:
    vocab = {piece: number for number, piece in enumerate([*SPECIAL, *PIECES])}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{**named, "mask_token": "[MASK]", **more})


def bert(kind=BertForMaskedLM, vocab: int = len(SPECIAL) + len(PIECES)) -> BertForMaskedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Weights as large as these make predictions depend on their context.
        return kind(BertConfig(vocab_size=vocab, max_position_embeddings=64, initializer_range=0.5, **SIZES)).eval()


def padded_by(token: int) -> BertForMaskedLM:
    model = bert()
    model.config.pad_token_id = token
    return model


def data(texts=TEXTS, **more) -> Dataset:
    columns = {"label": [i % 3 for i in range(len(texts))], "id": [f"row {i}" for i in range(len(texts))]}
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("text", *more, "id")} | {"label": datasets.ClassLabel(3)}
    )
    return Dataset.from_dict({"text": list(texts), **more, **columns}, features=features)


def of(result: Dataset, number: int, column: str = "text") -> list[str]:
    return [row[column] for row in result if row["id"] == f"row {number}"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def predicted(model, tokenizer, *texts: str, column: int, word: str, k: int) -> set[str]:
    """The reference: mask the word, look at the logits of the whole text, take the best k of the words allowed."""
    ids = tokenizer(*texts, return_tensors="pt")
    own = tokenizer.convert_tokens_to_ids(word)
    at = [i for i, s in enumerate(ids.sequence_ids(0)) if s == column and ids["input_ids"][0, i] == own]
    ids["input_ids"][0, at[0]] = tokenizer.mask_token_id
    with torch.no_grad():
        logits = model(**ids).logits[0, at[0]]
    ranked = [piece for _, piece in sorted(zip((-logits).tolist(), [*SPECIAL, *PIECES], strict=True))]
    return set([piece for piece in ranked if piece in WORDS and piece != word][:k])
