"""Data: where examples come from, and how a run goes over them."""

from hf_stages.data.augment import Augment as Augment
from hf_stages.data.by_difficulty import ByDifficulty as ByDifficulty
from hf_stages.data.by_length import ByLength as ByLength
from hf_stages.data.collator import Collator as Collator
from hf_stages.data.mixture import Mixture as Mixture
from hf_stages.data.model_loss import ModelLoss as ModelLoss
from hf_stages.data.ordered import Ordered as Ordered
from hf_stages.data.replay import Replay as Replay
from hf_stages.data.source import Source as Source

__all__ = ["Augment", "ByDifficulty", "ByLength", "Collator", "Mixture", "ModelLoss", "Ordered", "Replay", "Source"]
