"""Data: where examples come from, how a run goes over them, and how they become batches."""

from hf_stages.data.augment import Augment as Augment
from hf_stages.data.collator import Collator as Collator
from hf_stages.data.completion_only import CompletionOnly as CompletionOnly
from hf_stages.data.dynamic_mlm import DynamicMLM as DynamicMLM
from hf_stages.data.lengths import Lengths as Lengths
from hf_stages.data.packed import Packed as Packed
from hf_stages.data.source import Source as Source
from hf_stages.data.tool_calls_only import ToolCallsOnly as ToolCallsOnly

__all__ = [
    "Augment",
    "Collator",
    "CompletionOnly",
    "DynamicMLM",
    "Lengths",
    "Packed",
    "Source",
    "ToolCallsOnly",
]
