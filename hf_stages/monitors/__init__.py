"""Monitors: what watches a stage and adds numbers to its log. One file each.

They change nothing. A monitor is called at each training log with ``view`` (see ``base``); it sees the model, no batch.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.monitors.base import Monitor as Monitor

_EXPORTS = Exports(__name__, ("monitors",), more={"Monitor": "hf_stages.monitors.base"})


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
