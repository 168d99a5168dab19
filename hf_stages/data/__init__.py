"""Data: sources, curricula that draw from them, and collators that make batches.

``source.py`` reads one dataset. ``curricula/`` says which sources a stage draws from, ``drawing/`` which row comes at
which position, ``collators/`` how rows become a batch, and ``augmentation/`` makes more rows. Nothing here trains or
evaluates.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.data.at_depths import AtDepths as AtDepths
    from hf_stages.data.augmentation.augment import Augment as Augment
    from hf_stages.data.collators.base import BaseCollator as BaseCollator
    from hf_stages.data.collators.by_source import BySource as BySource
    from hf_stages.data.collators.collator import Collator as Collator
    from hf_stages.data.collators.completion_only import CompletionOnly as CompletionOnly
    from hf_stages.data.collators.dynamic_mlm import DynamicMLM as DynamicMLM
    from hf_stages.data.collators.lengths import Lengths as Lengths
    from hf_stages.data.collators.packed import Packed as Packed
    from hf_stages.data.collators.preferences import Preferences as Preferences
    from hf_stages.data.collators.tool_calls_only import ToolCallsOnly as ToolCallsOnly
    from hf_stages.data.curricula.base import Curriculum as Curriculum
    from hf_stages.data.curricula.by_difficulty import ByDifficulty as ByDifficulty
    from hf_stages.data.curricula.by_length import ByLength as ByLength
    from hf_stages.data.curricula.mixture import Mixture as Mixture
    from hf_stages.data.curricula.model_loss import ModelLoss as ModelLoss
    from hf_stages.data.curricula.ordered import Ordered as Ordered
    from hf_stages.data.curricula.replay import Replay as Replay
    from hf_stages.data.source import Source as Source

_EXPORTS = Exports(
    __name__,
    ("data",),
    more={"BaseCollator": "hf_stages.data.collators.base", "Curriculum": "hf_stages.data.curricula.base"},
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
