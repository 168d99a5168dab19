"""What an exporter has written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("hf_stages")


@dataclass(frozen=True)
class Report:
    """A file, and what a reader of its name would not expect of it."""

    file: Path
    bytes: int
    tensors: Mapping[str, int]
    """How many tensors are of each type."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        types = ", ".join(f"{count} {name}" for name, count in self.tensors.items())
        return "\n".join([f"{self.file.name}: {self.bytes / 2**20:,.2f} MiB; {types}", *self.notes])

    def log(self) -> Report:
        """Notes are warnings: whoever runs a recipe does not see what an exporter returns."""
        logger.info(str(self).splitlines()[0])
        for note in self.notes:
            logger.warning(f"{self.file.name}: {note}")
        return self
