"""Staged training, distillation and compression inside the Hugging Face Trainer.

The rooms, from the ground up; each builds on those before it: ``core``, ``layers``, ``models``, then the parts of a
stage (``losses``, ``transforms``, ``schedules``, ``gates``, ``monitors``), ``data``, ``teachers``, ``recipes``,
``planning``, ``reports``, ``packing``, ``evaluation``, ``hub``, ``training``, ``commands``.

What a script needs is here by its name: ``from hf_stages import Stage, StagedTrainer, LogitKL, Ternarize, Rewarm,
pack``.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.after_import import after_import as _after_import
from hf_stages.core.exports import Exports as _Exports
from hf_stages.core.version import __version__ as __version__

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.core.curves import WSD as WSD
    from hf_stages.core.curves import Const as Const
    from hf_stages.core.curves import Cosine as Cosine
    from hf_stages.core.curves import Curve as Curve
    from hf_stages.core.curves import Join as Join
    from hf_stages.core.curves import Linear as Linear
    from hf_stages.core.curves import Step as Step
    from hf_stages.core.occasions import EachUpdates as EachUpdates
    from hf_stages.core.occasions import LogSpaced as LogSpaced
    from hf_stages.core.occasions import Occasions as Occasions
    from hf_stages.core.stage import Recipe as Recipe
    from hf_stages.core.stage import Stage as Stage
    from hf_stages.data.at_depths import AtDepths as AtDepths
    from hf_stages.data.augmentation.augment import Augment as Augment
    from hf_stages.data.collators.by_source import BySource as BySource
    from hf_stages.data.collators.collator import Collator as Collator
    from hf_stages.data.collators.completion_only import CompletionOnly as CompletionOnly
    from hf_stages.data.collators.dynamic_mlm import DynamicMLM as DynamicMLM
    from hf_stages.data.collators.lengths import Lengths as Lengths
    from hf_stages.data.collators.packed import Packed as Packed
    from hf_stages.data.collators.preferences import Preferences as Preferences
    from hf_stages.data.collators.tool_calls_only import ToolCallsOnly as ToolCallsOnly
    from hf_stages.data.curricula.by_difficulty import ByDifficulty as ByDifficulty
    from hf_stages.data.curricula.by_length import ByLength as ByLength
    from hf_stages.data.curricula.mixture import Mixture as Mixture
    from hf_stages.data.curricula.model_loss import ModelLoss as ModelLoss
    from hf_stages.data.curricula.ordered import Ordered as Ordered
    from hf_stages.data.curricula.replay import Replay as Replay
    from hf_stages.data.source import Source as Source
    from hf_stages.evaluation.metrics.accuracy import Accuracy as Accuracy
    from hf_stages.evaluation.metrics.f1 import F1 as F1
    from hf_stages.evaluation.metrics.matthews_correlation import MatthewsCorrelation as MatthewsCorrelation
    from hf_stages.evaluation.metrics.metrics import Metrics as Metrics
    from hf_stages.evaluation.metrics.pearson import Pearson as Pearson
    from hf_stages.evaluation.metrics.spearman import Spearman as Spearman
    from hf_stages.gates.above import Above as Above
    from hf_stages.gates.actions.cut_rate import CutRate as CutRate
    from hf_stages.gates.actions.end_stage import EndStage as EndStage
    from hf_stages.gates.actions.rollback import Rollback as Rollback
    from hf_stages.gates.actions.stop_run import StopRun as StopRun
    from hf_stages.gates.below import Below as Below
    from hf_stages.gates.budget import Budget as Budget
    from hf_stages.gates.detectors.dead_heads import DeadHeads as DeadHeads
    from hf_stages.gates.detectors.dead_layers import DeadLayers as DeadLayers
    from hf_stages.gates.detectors.dead_recurrence import DeadRecurrence as DeadRecurrence
    from hf_stages.gates.detectors.divergence import Divergence as Divergence
    from hf_stages.gates.detectors.non_finite import NonFinite as NonFinite
    from hf_stages.gates.detectors.on_spike import OnSpike as OnSpike
    from hf_stages.gates.detectors.overthinking import Overthinking as Overthinking
    from hf_stages.gates.detectors.stalled_loader import StalledLoader as StalledLoader
    from hf_stages.gates.detectors.token_collapse import TokenCollapse as TokenCollapse
    from hf_stages.gates.detectors.unshifted_labels import UnshiftedLabels as UnshiftedLabels
    from hf_stages.gates.expect import Expect as Expect
    from hf_stages.gates.forgetting import Forgetting as Forgetting
    from hf_stages.gates.notify.trackio_alerts import TrackioAlerts as TrackioAlerts
    from hf_stages.gates.notify.webhook import Webhook as Webhook
    from hf_stages.gates.plateau import Plateau as Plateau
    from hf_stages.losses.attention_kl import AttentionKL as AttentionKL
    from hf_stages.losses.attention_mse import AttentionMSE as AttentionMSE
    from hf_stages.losses.attention_relation import AttentionRelation as AttentionRelation
    from hf_stages.losses.balanced import Balanced as Balanced
    from hf_stages.losses.dpo import DPO as DPO
    from hf_stages.losses.embedding_cosine import EmbeddingCosine as EmbeddingCosine
    from hf_stages.losses.halting_loss import HaltingLoss as HaltingLoss
    from hf_stages.losses.hidden_mse import HiddenMSE as HiddenMSE
    from hf_stages.losses.logit_kl import LogitKL as LogitKL
    from hf_stages.losses.logit_mse import LogitMSE as LogitMSE
    from hf_stages.losses.task_loss import TaskLoss as TaskLoss
    from hf_stages.models.model_source import ModelSource as ModelSource
    from hf_stages.models.stage_models import load_stage as load_stage
    from hf_stages.monitors.attention_entropy import AttentionEntropy as AttentionEntropy
    from hf_stages.monitors.gradient_norm import GradientNorm as GradientNorm
    from hf_stages.monitors.loss_by_source import LossBySource as LossBySource
    from hf_stages.monitors.loss_shares import LossShares as LossShares
    from hf_stages.monitors.quantized_weights import QuantizedWeights as QuantizedWeights
    from hf_stages.monitors.raw_loss import RawLoss as RawLoss
    from hf_stages.monitors.run_health import RunHealth as RunHealth
    from hf_stages.monitors.sampled_depth import SampledDepth as SampledDepth
    from hf_stages.monitors.throughput import Throughput as Throughput
    from hf_stages.monitors.token_correlation import TokenCorrelation as TokenCorrelation
    from hf_stages.monitors.update_ratio import UpdateRatio as UpdateRatio
    from hf_stages.packing.formats.gguf import Gguf as Gguf
    from hf_stages.packing.formats.onnx import Onnx as Onnx
    from hf_stages.packing.pack_folder import pack as pack
    from hf_stages.recipes.ready.bitdistill import bitdistill as bitdistill
    from hf_stages.recipes.ready.multi_stage import multi_stage as multi_stage
    from hf_stages.recipes.ready.one_stage import one_stage as one_stage
    from hf_stages.recipes.ready.single_stage import single_stage as single_stage
    from hf_stages.recipes.ready.three_stage import three_stage as three_stage
    from hf_stages.recipes.ready.two_stage import two_stage as two_stage
    from hf_stages.schedules.fresh import Fresh as Fresh
    from hf_stages.schedules.restarts import Restarts as Restarts
    from hf_stages.schedules.resume import Resume as Resume
    from hf_stages.schedules.rewarm import Rewarm as Rewarm
    from hf_stages.teachers.declared import CachedTeacher as CachedTeacher
    from hf_stages.teachers.declared import Teacher as Teacher
    from hf_stages.training.trainer import StagedMixin as StagedMixin
    from hf_stages.training.trainer import StagedTrainer as StagedTrainer
    from hf_stages.transforms.add_lora import AddLora as AddLora
    from hf_stages.transforms.binarize import Binarize as Binarize
    from hf_stages.transforms.freeze import Freeze as Freeze
    from hf_stages.transforms.insert_subln import InsertSubLN as InsertSubLN
    from hf_stages.transforms.make_recurrent import MakeRecurrent as MakeRecurrent
    from hf_stages.transforms.merge_lora import MergeLora as MergeLora
    from hf_stages.transforms.reduce_layers import ReduceLayers as ReduceLayers
    from hf_stages.transforms.reduce_width import ReduceWidth as ReduceWidth
    from hf_stages.transforms.resize_vocab import ResizeVocab as ResizeVocab
    from hf_stages.transforms.set_recurrence import SetRecurrence as SetRecurrence
    from hf_stages.transforms.set_task import SetTask as SetTask
    from hf_stages.transforms.split_ternary import SplitTernary as SplitTernary
    from hf_stages.transforms.ternarize import Ternarize as Ternarize
    from hf_stages.transforms.unfreeze import Unfreeze as Unfreeze

_EXPORTS = _Exports(
    __name__,
    (
        *("losses", "transforms", "schedules", "gates", "monitors", "data", "metrics", "teachers", "exporters"),
        *("actions", "notifiers", "curves", "occasions", "recipes"),
    ),
    more={
        "ModelSource": "hf_stages.models.model_source",
        "Recipe": "hf_stages.core.stage",
        "Stage": "hf_stages.core.stage",
        "StagedMixin": "hf_stages.training.trainer",
        "StagedTrainer": "hf_stages.training.trainer",
        "load_stage": "hf_stages.models.stage_models",
        "pack": "hf_stages.packing.pack_folder",
    },
)


def _register() -> None:
    from hf_stages.models import auto_classes

    auto_classes.register()


def _register_packed() -> None:
    from hf_stages.packing import quantizer  # noqa: F401


# AutoConfig and AutoModel... know the project's own model type from the moment on that there is an AutoConfig.
_after_import("transformers.models.auto.configuration_auto", _register)
# transformers knows packed models from the moment on that it knows any quantized ones.
_after_import("transformers.quantizers.auto", _register_packed)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return sorted({*_EXPORTS.names(), "__version__"})
