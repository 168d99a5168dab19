"""Data: where examples come from, and how a run goes over them."""

from hf_stages.data.augment import Augment as Augment
from hf_stages.data.collator import Collator as Collator
from hf_stages.data.source import Source as Source

__all__ = ["Augment", "Collator", "Source"]
