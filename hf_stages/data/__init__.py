"""Data: where examples come from, how a run goes over them, and how they become batches."""

from hf_stages.data.augment import Augment as Augment
from hf_stages.data.by_difficulty import ByDifficulty as ByDifficulty
from hf_stages.data.by_length import ByLength as ByLength
from hf_stages.data.by_source import BySource as BySource
from hf_stages.data.collator import Collator as Collator
from hf_stages.data.completion_only import CompletionOnly as CompletionOnly
from hf_stages.data.dynamic_mlm import DynamicMLM as DynamicMLM
from hf_stages.data.lengths import Lengths as Lengths
from hf_stages.data.mixture import Mixture as Mixture
from hf_stages.data.model_loss import ModelLoss as ModelLoss
from hf_stages.data.ordered import Ordered as Ordered
from hf_stages.data.packed import Packed as Packed
from hf_stages.data.preferences import Preferences as Preferences
from hf_stages.data.replay import Replay as Replay
from hf_stages.data.source import Source as Source
from hf_stages.data.tool_calls_only import ToolCallsOnly as ToolCallsOnly

__all__ = [
    "Augment",
    "ByDifficulty",
    "ByLength",
    "BySource",
    "Collator",
    "CompletionOnly",
    "DynamicMLM",
    "Lengths",
    "Mixture",
    "ModelLoss",
    "Ordered",
    "Packed",
    "Preferences",
    "Replay",
    "Source",
    "ToolCallsOnly",
]
