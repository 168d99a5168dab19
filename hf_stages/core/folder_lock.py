"""One process at a time writes into a folder. The operating system frees the lock when its holder dies."""

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
"""Seconds to wait for the lock: a process that was just ended may still be writing."""
_LOCKED_ERRORS = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_held_here: set[int] = set()
"""Descriptors of the locks that this process holds."""

logger = logging.get_logger(__name__)


@contextmanager
def lock_folder_on_all_ranks(folder: Path, args: TrainingArguments) -> Iterator[None]:
    """Lock a folder in the process that writes; where that fails, raise the same ValueError on all ranks."""
    with ExitStack() as locks:
        problem = None
        if args.should_save:
            try:
                locks.enter_context(lock_folder(folder))
            except ValueError as error:
                problem = str(error)
        failed = next((text for text in from_all_ranks(problem, args) if text is not None), None)
        if failed is not None:
            raise ValueError(failed)
        yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; ValueError where another process, or another run of this process, holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, owner = folder / NAME, os.getpid()
    try:
        descriptor = _acquire(path, time.monotonic() + PATIENCE)
    except OSError as error:
        logger.warning(f"{folder} cannot be locked here ({error}): see to it that nothing else writes into it")
        yield
        return
    try:
        yield
    finally:
        if os.getpid() == owner:
            _release(path, descriptor)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # its holder removed it meanwhile; another file is there now
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _LOCKED_ERRORS:
                raise
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{path.parent}: {_holder(path)} writes into this folder, and two writers would spoil each "
                    "other's work. Wait until it has ended, or choose another output_dir"
                ) from None
            time.sleep(0.1)
    _held_here.add(descriptor)
    about = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(about).encode())
    return descriptor


def _release(path: Path, descriptor: int) -> None:
    _held_here.discard(descriptor)
    if sys.platform != "win32":  # Windows cannot remove an open file
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
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text: Windows locks ranges, against readers too
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _close_in_child() -> None:
        """Close locks in a forked data worker: it may outlive a killed parent by seconds and must not hold its lock."""
        for descriptor in _held_here:
            os.close(descriptor)
        _held_here.clear()

    os.register_at_fork(after_in_child=_close_in_child)
