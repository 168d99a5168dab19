"""What an exporter wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("hf_stages")


@dataclass(frozen=True)
class Report:
    """A file that an exporter wrote, with notes on what is unexpected in it."""

    file: Path
    """The file."""
    bytes: int
    """Its size."""
    tensors: Mapping[str, int]
    """How many tensors are of each type."""
    notes: tuple[str, ...] = ()
    """What may surprise, such as weights that are not in low bits."""

    def __str__(self) -> str:
        types = ", ".join(f"{count} {name}" for name, count in self.tensors.items())
        return "\n".join([f"{self.file.name}: {self.bytes / 2**20:,.2f} MiB; {types}", *self.notes])

    def log(self) -> Report:
        """Log the file, and its notes as warnings: a run does not show what an exporter returns."""
        logger.info(str(self).splitlines()[0])
        for note in self.notes:
            logger.warning(f"{self.file.name}: {note}")
        return self
