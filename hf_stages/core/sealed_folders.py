"""Sealed folders: written completely or not at all, with checksums that show later damage.

A seal is a file that is written last and lists every other file with its size and checksum. A folder without a seal was
being written when the process died; a folder that differs from its seal was damaged later. Both are passed over. The
model card is not listed: people may edit it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

SCHEMA = 1
SEAL = "seal.json"
CARD = "README.md"
STAGE_FILE = "stage.json"
STATE_FILE = "stage_state.json"
RUN_FILE = "run.json"
TRAINING_STATE = "training_state"
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS})
_DISK_WORDS = (
    "No space left",
    "os error 28",
    "Disk quota",
    "PytorchStreamWriter",
    "inline_container",
    "iostream error",
)
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


class NewerSchema(ValueError):
    """A newer version of hf_stages wrote the folder. It is neither read nor overwritten."""


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file in one step: readers see the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file of ours, which an error calls ``what``. A file with a newer schema is refused."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: expected {what}, but there is no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); the file is damaged") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int):
        raise ValueError(f"{path}: expected {what} with a schema number, got none; was it written by hf_stages?")
    if schema > SCHEMA:
        raise NewerSchema(
            f"{path}: written with schema {schema}, this version of hf_stages reads up to {SCHEMA}; upgrade hf_stages"
        )
    return data


def checksum_file(path: Path) -> str:
    """Return the checksum of a file's bytes."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def seal_folder(folder: Path) -> str:
    """Flush all files to the disk, then write the seal. Return the seal's checksum, which identifies the folder."""
    paths = _files(folder)
    with ThreadPoolExecutor(2) as pool:  # the processor makes checksums while the disk syncs
        digests = pool.map(checksum_file, paths)
        for path in paths:
            _sync_file(path)
        found = zip(paths, digests, strict=True)
        files = {p.relative_to(folder).as_posix(): [p.stat().st_size, d] for p, d in found if p.name != CARD}
    for path in [p for p in folder.rglob("*") if p.is_dir()]:
        _sync_folder(path)
    write_json(folder / SEAL, {"schema": SCHEMA, "files": files})
    return checksum_file(folder / SEAL)


def find_damage(folder: Path) -> str | None:
    """Say why a folder cannot be trusted; None where it is complete and unchanged."""
    try:
        files = read_json(folder / SEAL, "a seal")["files"]
    except NewerSchema:
        raise
    except (ValueError, KeyError) as error:
        return str(error) if (folder / SEAL).exists() else "it was not written to its end"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
        if checksum_file(path) != digest:
            return f"{name} was changed after it was written (its checksum differs)"
    return None


@contextmanager
def write_sealed_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder that is then sealed and renamed to ``final``. After an error nothing is left of it."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        seal_folder(temporary)
        if final.exists():  # an earlier attempt at the same stage, which the manifest does not list
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """List the ``checkpoint-N`` folders as (N, folder), newest first."""
    if not out.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in out.iterdir() if p.is_dir() and (m := _CHECKPOINT.match(p.name))]
    return sorted(found, reverse=True)


def newest_intact_checkpoint(out: Path, wanted: Callable[[dict], bool], say: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint whose stage state is ``wanted``; ``say`` which were passed over and why."""
    for _, folder in checkpoints(out):
        problem = find_damage(folder)
        if problem is None and not (folder / STATE_FILE).is_file():
            problem = f"it has no {STATE_FILE}"
        if problem is not None:
            say(f"{folder} is passed over: {problem}; looking for the one before")
            continue
        state = read_json(folder / STATE_FILE, "a stage state")
        if not wanted(state):
            continue
        if (problem := _damage_of_best(folder, state)) is not None:
            say(f"{folder} is passed over: {problem}; looking for the one before")
            continue
        return folder
    return None


def _damage_of_best(folder: Path, state: dict[str, Any]) -> str | None:
    """Say what is wrong with the best checkpoint so far, where the stage is to end with its best model."""
    best = state.get("best")
    if best is None or best == folder.name or not state["declared"]["args"]["load_best_model_at_end"]:
        return None
    problem = find_damage(folder.parent / best)
    return f"the best model so far is in {best}, but {problem}" if problem is not None else None


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk caused an error. torch and safetensors wrap the system's errors in their own types."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return True  # not every OSError: a failed push to the Hub is one, too
    text = str(error)
    return any(mark in text for mark in _DISK_WORDS)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows has no descriptors of folders, and needs none
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
