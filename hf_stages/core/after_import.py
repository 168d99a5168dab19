"""Run a function right after a module is imported, whenever that happens, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def after_import(name: str, then: Callable[[], None]) -> None:
    """Call ``then`` after ``name`` is imported; at once where it is imported already.

    >>> after_import("json", lambda: print("imported"))
    imported
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _ImportHook(name, then))


class _ImportHook:
    """An import finder that finds nothing itself: others find the module, and it extends what their loader does."""

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
            if self in sys.meta_path:  # a module may be looked for and not imported
                sys.meta_path.remove(self)
                self.then()

        loader.exec_module = exec_module
