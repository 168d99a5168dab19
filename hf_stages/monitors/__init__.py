"""Monitors: what watches a stage, or a plain Trainer, and adds numbers to the training log. One file each.

They change nothing. A monitor is called at each training log with ``view``, or looks at updates in between (``base``).
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.monitors.base import Monitor as Monitor

_EXPORTS = Exports(
    __name__,
    ("monitors", "occasions"),
    more={"Monitor": "hf_stages.monitors.base", "Watcher": "hf_stages.monitors.base"},
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
