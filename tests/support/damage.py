"""Files that break: a bit flips, the end is missing, the file is gone."""

from __future__ import annotations

from pathlib import Path

DAMAGES = ("flip", "truncate", "remove")


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0b100
        path.write_bytes(data)
