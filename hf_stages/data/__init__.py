"""Data: sources, curricula that draw from them, and collators that make batches.

``source.py`` reads one dataset. ``curricula/`` says which sources a stage draws from, ``drawing/`` which row comes at
which position, ``collators/`` how rows become a batch, and ``augmentation/`` makes more rows. Nothing here trains or
evaluates.
"""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(
    __name__,
    ("data",),
    more={"BaseCollator": "hf_stages.data.collators.base", "Curriculum": "hf_stages.data.curricula.base"},
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
