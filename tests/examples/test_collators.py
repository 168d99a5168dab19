from __future__ import annotations

from pathlib import Path

import pytest

import packed_sequences


def test_packed_learns_as_padded(tmp_path: Path, capsys) -> None:
    found = packed_sequences.main(tmp_path, steps=4, size=30_000)
    assert found["packed"][0] == pytest.approx(found["padded"][0], abs=1e-4)
    assert found["packed, growing"][0] == pytest.approx(found["padded"][0], rel=0.05)
    assert "packed, growing" in capsys.readouterr().out
