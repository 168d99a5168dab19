"""Metrics that need no network: ``evaluate`` metrics made from scikit-learn and scipy."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(__name__, ("metrics",))


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
