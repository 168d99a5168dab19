"""Folders that are whole or not there: seals, atomic writes, and the newest checkpoint that is intact.

A seal is a file written last that lists every other file with size and checksum. A folder without one was being
written when the process died; a folder that disagrees with its seal was damaged afterwards. Both are passed over.
The model card is left out: it is for people, who may edit it.
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
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS})
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
    """A folder that a newer version wrote: neither read nor written over."""


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one step: readers see the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read one of our JSON files; a newer schema is refused, not guessed at."""
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
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def seal_folder(folder: Path) -> str:
    """Write everything through to the disk, then the seal. Returns the seal's own checksum: the folder's identity."""
    paths = _files(folder)
    with ThreadPoolExecutor(2) as pool:  # checksums are the processor's work, syncing is the disk's: both at once
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
    """Why a folder cannot be trusted, or None where it is whole."""
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
    """A temporary folder that becomes ``final``, sealed, in one rename. On any error nothing is left behind."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        seal_folder(temporary)
        if final.exists():  # left by an earlier attempt at the same stage, which the manifest does not count
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """``checkpoint-N`` folders, newest first."""
    if not out.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in out.iterdir() if p.is_dir() and (m := _CHECKPOINT.match(p.name))]
    return sorted(found, reverse=True)


def newest_intact_checkpoint(out: Path, wanted: Callable[[dict], bool], say: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint whose stage state is wanted; says which ones it passed over and why."""
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
        if (problem := _best_lost(folder, state)) is not None:
            say(f"{folder} is passed over: {problem}; looking for the one before")
            continue
        return folder
    return None


def _best_lost(folder: Path, state: dict[str, Any]) -> str | None:
    """A stage that ends with its best model needs that checkpoint, too."""
    best = state.get("best")
    if best is None or best == folder.name or not state["declared"]["args"]["load_best_model_at_end"]:
        return None
    problem = find_damage(folder.parent / best)
    return f"the best model so far is in {best}, but {problem}" if problem is not None else None


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is the disk's: torch and safetensors wrap the system's own in types of theirs."""
    if isinstance(error, OSError) and error.errno in _DISK:
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
    except OSError:  # Windows has no descriptors of folders; renames are durable there without
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
