"""Names that a package gives, imported when they are asked for: the same files that a recipe's ``use:`` looks in.

So a new part is one new file, in YAML and in Python: ``losses/my_loss.py`` with a class ``MyLoss`` is found by both.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Exports:
    """What ``from hf_stages.losses import ...`` finds, and ``dir(hf_stages.losses)`` shows.

    >>> Exports("hf_stages.gates", kinds=("gates",)).module_of("Plateau")
    'hf_stages.gates.plateau'
    """

    package: str
    kinds: tuple[str, ...] = ()
    """Where parts are looked for, as in ``registry.PLACES``."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Other names, with the modules that they stand in."""

    def module_of(self, name: str) -> str | None:
        from hf_stages.core.registry import module_of

        found = (module_of(name, kind) for kind in self.kinds)
        return self.more.get(name) or next((module for module in found if module is not None), None)

    def load(self, name: str) -> Any:
        """For a package's ``__getattr__``."""
        module = self.module_of(name) if not name.startswith("_") else None
        if module is None:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)

    def names(self) -> list[str]:
        """For a package's ``__dir__``."""
        from hf_stages.core.registry import list_parts

        return sorted({*self.more, *(name for kind in self.kinds for _, name in list_parts(kind))})
