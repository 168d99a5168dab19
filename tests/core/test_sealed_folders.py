"""A seal notices every damage, and a folder is written whole or not at all."""

from __future__ import annotations

import errno

import pytest

from hf_stages.core.sealed_folders import (
    NewerSchema,
    find_damage,
    newest_intact_checkpoint,
    seal_folder,
    write_json,
    write_sealed_folder,
)
from tests.support.damage import DAMAGES, damage


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "checkpoint-4"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "state").write_bytes(b"state")
    seal_folder(folder)
    return folder


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "deep/state", "seal.json"])
def test_any_damage_breaks_the_seal(sealed, name, how):
    assert find_damage(sealed) is None
    damage(sealed / name, how)
    assert find_damage(sealed)


@pytest.mark.parametrize("position", [0, 1, 5000, 10239])
def test_one_flipped_bit_breaks_the_seal(sealed, position):
    data = bytearray((sealed / "weights").read_bytes())
    data[position] ^= 1
    (sealed / "weights").write_bytes(data)
    assert find_damage(sealed) == "weights was changed after it was written (its checksum differs)"


def test_a_newer_seal_is_refused_not_passed_over(sealed):
    write_json(sealed / "seal.json", {"schema": 99, "files": {}})
    with pytest.raises(NewerSchema, match=r"schema 99, this version of hf_stages reads up to 1; upgrade hf_stages"):
        newest_intact_checkpoint(sealed.parent, lambda state: True, print)


def test_an_error_leaves_nothing_half_written_behind(tmp_path):
    def write(fail: bool) -> None:
        with write_sealed_folder(tmp_path / "01-a") as folder:
            (folder / "file").write_text(str(fail))
            if fail:
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(True)
    assert not list(tmp_path.iterdir())
    write(False)
    with pytest.raises(OSError, match="No space"):
        write(True)
    assert (tmp_path / "01-a" / "file").read_text() == "False"
