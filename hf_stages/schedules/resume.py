"""Go on where the parent's schedule ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_stages.schedules.base import check_optimizer


@dataclass(frozen=True)
class Resume:
    """The parent's declared shape spans this stage too and goes on where the parent ended it.

    Where a gate ended the parent early, this stage starts at the rate reached and still ends where it was
    declared to end. The optimizer is carried, moments mapped by parameter name.

    >>> Resume().optimizer
    'carry'
    """

    optimizer: Literal["reset", "carry"] = "carry"
    """``reset`` begins with an empty optimizer."""

    def __post_init__(self) -> None:
        check_optimizer("Resume", self.optimizer)
