"""Schedules: a stage's learning rates, and whether the optimizer starts anew. One file each."""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.schedules.base import Defaults as Defaults
    from hf_stages.schedules.base import Piece as Piece
    from hf_stages.schedules.base import Schedule as Schedule
    from hf_stages.schedules.base import Span as Span
    from hf_stages.schedules.fresh import Fresh as Fresh
    from hf_stages.schedules.restarts import Restarts as Restarts
    from hf_stages.schedules.resume import Resume as Resume
    from hf_stages.schedules.rewarm import Rewarm as Rewarm

_EXPORTS = Exports(
    __name__,
    ("schedules",),
    more=dict.fromkeys(("Defaults", "Piece", "Schedule", "Span"), "hf_stages.schedules.base"),
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
