"""Names that a package exports. Each is imported when it is asked for, so that ``import hf_stages`` stays fast.

The same files are searched as for a recipe's ``use:``. A new part is therefore one new file, in YAML and in Python:
``losses/my_loss.py`` with a class ``MyLoss`` is found by both.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Exports:
    """The names of one package: what ``from hf_stages.losses import ...`` finds and ``dir(hf_stages.losses)`` lists.

    >>> Exports("hf_stages.gates", kinds=("gates",)).module_of("Plateau")
    'hf_stages.gates.plateau'
    """

    package: str
    """The package's own name, for its error messages."""
    kinds: tuple[str, ...] = ()
    """Kinds of parts that the package exports, as in ``registry.PLACES``."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further names, each with the module that defines it."""

    def module_of(self, name: str) -> str | None:
        """Return the module that defines a name; None where the package does not export it."""
        from hf_stages.core.registry import module_of

        found = (module_of(name, kind) for kind in self.kinds)
        return self.more.get(name) or next((module for module in found if module is not None), None)

    def load(self, name: str) -> Any:
        """Import a name: what the package's ``__getattr__`` calls. ``import *`` asks for ``__all__``."""
        if name == "__all__":
            return self.names()
        module = self.module_of(name) if not name.startswith("_") else None
        if module is None:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}{self._hint(name)}")
        return getattr(importlib.import_module(module), name)

    def names(self) -> list[str]:
        """List the names: what the package's ``__dir__`` calls."""
        from hf_stages.core.registry import list_parts

        return sorted({*self.more, *(name for kind in self.kinds for _, name in list_parts(kind))})

    def _hint(self, name: str) -> str:
        """Name the nearest known name where a class may be misspelt; tools that ask for dunders get no hint."""
        from hf_stages.core.did_you_mean import did_you_mean

        hint = "" if name.startswith("_") else did_you_mean(name, self.names())
        return f"; {hint}" if hint.startswith("did you mean") else ""
