"""A tiny masked language model, and augmentation with it."""

from __future__ import annotations

import pytest

from hf_stages.data import Augment
from tests.data.augmentation.tiny_models import (
    bert,
    wordpieces,
)


@pytest.fixture(scope="module")
def tokenizer():
    return wordpieces()


@pytest.fixture(scope="module")
def model():
    return bert()


@pytest.fixture(scope="module")
def make(model, tokenizer):
    """``make(**settings)``: augmentation with the tiny model, of a column ``text``."""
    return lambda **settings: Augment(model, **{"tokenizer": tokenizer, "text": "text", "n": 4, **settings})
