"""Whether two runs are the same, bit for bit: folders, histories, the updates they trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TIMED = ("_runtime", "_per_second", "seconds")
WHEN_SAVED = ("seal", "save_steps", "TrainerControl")
"""A parent's seal is over its seconds, too; Trainer's flags are those of its last save."""


def assert_same(cut: Path, whole: Path) -> None:
    """Everything a run leaves behind is equal, but for clocks and for the name of its folder."""
    assert_same_updates(cut, whole)
    folders = sorted(p.name for p in whole.glob("[0-9]*") if p.is_dir())
    assert folders == sorted(p.name for p in cut.glob("[0-9]*") if p.is_dir())
    for name in folders:
        assert_same_folder(cut / name, whole / name)
    assert_same_incidents(cut, whole)
    assert_equal(plain(cut / "run.json"), plain(whole / "run.json"), "run.json")
    ends = [plain(out.with_suffix(".end")) for out in (cut, whole)]
    assert_equal(*ends, "end")
    assert not list(cut.glob(".*")), "half-written files are left"


def assert_same_folder(cut: Path, whole: Path) -> None:
    files = sorted(p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(cut).as_posix() for p in cut.rglob("*") if p.is_file())
    for name in files:
        where = f"{whole.name}/{name}"
        if name == "seal.json" or name.endswith((".md", ".bin")):
            continue
        if name.endswith(".json"):
            assert_equal(plain(cut / name), plain(whole / name), where)
        elif name.endswith(".safetensors"):
            assert_equal(load_file(cut / name), load_file(whole / name), where)
        else:
            mine, theirs = (torch.load(folder / name, weights_only=False) for folder in (cut, whole))
            assert_equal(mine, theirs, where)


def assert_same_incidents(cut: Path, whole: Path) -> None:
    """The rows of the same bad updates were written down, with the same losses, batches and weights."""
    files = [sorted(path.relative_to(out) for path in (out / "_private").rglob("*.*")) for out in (cut, whole)]
    assert files[0] == files[1]
    for name in files[1]:
        if name.suffix == ".safetensors":
            assert_equal(load_file(cut / name), load_file(whole / name), str(name))
        else:
            assert (cut / name).read_text() == (whole / name).read_text(), name


def assert_same_updates(cut: Path, whole: Path) -> None:
    """Each update saw the same examples under the same masks with the generators at the same place, however often."""
    expected = {line["step"]: line for line in updates(whole)}
    assert len(expected) == len(updates(whole))
    for line in updates(cut):
        assert_equal(line, expected[line["step"]], f"update {line['step']}")
    assert {line["step"] for line in updates(cut)} == set(expected)


def updates(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".updates").read_text().splitlines()]


def plain(path: Path) -> Any:
    return _without_clocks(json.loads(path.read_text()), str(path))


def _without_clocks(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.endswith(TIMED) and k not in WHEN_SAVED}
        return {k: _without_clocks(v, path) for k, v in kept.items()}
    if isinstance(value, list):
        return [_without_clocks(v, path) for v in value]
    if isinstance(value, str) and "checkpoint-" in value:
        return value[value.index("checkpoint-") :]
    return value


def assert_equal(mine: Any, theirs: Any, where: str) -> None:
    """Equality that says where it ends."""
    assert type(mine) is type(theirs), f"{where}: {type(mine)} != {type(theirs)}"
    if isinstance(theirs, dict):
        assert set(mine) == set(theirs), f"{where}: {set(mine) ^ set(theirs)} in one of the two only"
        for key in theirs:
            assert_equal(mine[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, list | tuple):
        assert len(mine) == len(theirs), f"{where}: {len(mine)} entries, expected {len(theirs)}:\n{mine}\n{theirs}"
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif torch.is_tensor(theirs):
        assert torch.equal(mine, theirs), f"{where}: tensors differ by {(mine - theirs).abs().max()}"
    elif hasattr(theirs, "tobytes"):
        assert mine.tobytes() == theirs.tobytes(), f"{where}: arrays differ"
    else:
        assert mine == theirs or (mine != mine and theirs != theirs), f"{where}: {mine!r} != {theirs!r}"
