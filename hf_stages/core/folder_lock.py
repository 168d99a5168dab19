"""One writer in a folder at a time, by a lock that the operating system takes back when its holder dies."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from transformers import TrainingArguments
from transformers.utils import logging

from hf_stages.core.ranks import from_all_ranks

NAME = ".writer.lock"
PATIENCE = 2.0
"""Seconds: a process that was just ended may still be at its last words."""
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_mine: set[int] = set()

logger = logging.get_logger(__name__)


@contextmanager
def lock_folder_on_all_ranks(folder: Path, args: TrainingArguments) -> Iterator[None]:
    """The process that writes takes the folder; where it cannot, all ranks hear of it together."""
    with ExitStack() as held:
        problem = None
        if args.should_save:
            try:
                held.enter_context(lock_folder(folder))
            except ValueError as error:
                problem = str(error)
        said = next((text for text in from_all_ranks(problem, args) if text is not None), None)
        if said is not None:
            raise ValueError(said)
        yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; ValueError where another process, or another run of this one, holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, owner = folder / NAME, os.getpid()
    try:
        descriptor = _take(path, time.monotonic() + PATIENCE)
    except OSError as error:
        logger.warning(f"{folder} cannot be locked here ({error}): see to it that nothing else writes into it")
        yield
        return
    try:
        yield
    finally:
        if os.getpid() == owner:
            _give_back(path, descriptor)


def _take(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # removed by its holder between the two lines above; there is another one now
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _HELD:
                raise
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{path.parent}: {_holder(path)} writes into this folder, and two writers would spoil each other's work. "
                    "Wait until it has ended, or choose another output_dir"
                ) from None
            time.sleep(0.1)
    _mine.add(descriptor)
    about = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(about).encode())
    return descriptor


def _give_back(path: Path, descriptor: int) -> None:
    _mine.discard(descriptor)
    if sys.platform != "win32":  # which cannot remove what is open
        path.unlink(missing_ok=True)
    os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"process {about['process']} on {about['host']} (since {about['since']})"
    return "another process"


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond what is read: locks are of ranges there
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _let_go() -> None:
        """Workers that load data are forked. They outlive a killed parent by seconds, and must not hold its lock."""
        for descriptor in _mine:
            os.close(descriptor)
        _mine.clear()

    os.register_at_fork(after_in_child=_let_go)
