"""Do something right after a module is imported, whenever that is, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def after_import(name: str, then: Callable[[], None]) -> None:
    """At once where the module is there already.

    >>> after_import("json", lambda: print("there"))
    there
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watch(name, then))


class _Watch:
    """Finds nothing itself: it lets the other finders find the one module, and adds to what its loader does."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                self._extend(spec.loader)
                return spec
        return None

    def _extend(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            if self in sys.meta_path:  # looking for a module is not importing it: it stays until one was executed
                sys.meta_path.remove(self)
                self.then()

        loader.exec_module = exec_module
