"""Stores augmented datasets on disk: each is made once, and found again by a fingerprint of everything that made it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_stages.core.sealed_folders import SCHEMA, find_damage, write_json, write_sealed_folder

ABOUT = "augment.json"
logger = logging.getLogger(__name__)


def cached_dataset(cache: Path, address: str, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """Return the dataset at ``cache/address``. If it is missing, one process makes it while others wait."""
    from datasets import load_from_disk
    from filelock import FileLock

    folder = cache / address
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{address}.lock"):
        problem = find_damage(folder) if folder.exists() else "new"
        if problem is not None:
            if problem != "new":
                logger.warning(f"{folder} is made anew: {problem}")
            with write_sealed_folder(folder) as new:
                make().save_to_disk(new)
                write_json(new / ABOUT, {"schema": SCHEMA, **settings})
        dataset = load_from_disk(str(folder))
        dataset._fingerprint = address  # loading sets another one; later steps are cached under this
        return dataset
