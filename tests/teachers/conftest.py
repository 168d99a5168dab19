"""A cache of a tiny teacher, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_stages import Teacher
from tests.support import tiny


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    from hf_stages.data.sample_text import byte_tokenizer

    folder = tmp_path_factory.mktemp("caches") / "c"
    Teacher(tiny.llama(7)).cache(
        tiny.lm_data(), folder, hidden=[1], tokenizer=byte_tokenizer(), shard_rows=16, batch_size=8
    )
    return folder
