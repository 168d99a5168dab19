"""The example of a packed classifier."""

from __future__ import annotations

import pytest

import packed_classifier

pytestmark = pytest.mark.usefixtures("quick_gc")


def test_it_is_small_and_says_what_was_trained(tmp_path):
    found = packed_classifier.main(tmp_path / "out", steps=3, hidden=64)
    assert found["times smaller"] > 8  # 20 with the default width: the rest is in fp16
    assert found["largest difference of logits"] < 0.02
