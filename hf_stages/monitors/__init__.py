"""Monitors: what watches a stage, or a plain Trainer, and adds numbers to the training log. One file each.

They change nothing. A monitor is called at each training log with ``view``, or looks at updates in between (``base``).
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.core.occasions import EachUpdates as EachUpdates
    from hf_stages.core.occasions import LogSpaced as LogSpaced
    from hf_stages.core.occasions import Occasions as Occasions
    from hf_stages.monitors.attention_entropy import AttentionEntropy as AttentionEntropy
    from hf_stages.monitors.base import Monitor as Monitor
    from hf_stages.monitors.base import Watcher as Watcher
    from hf_stages.monitors.callback import MonitorCallback as MonitorCallback
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

_EXPORTS = Exports(
    __name__,
    ("monitors", "occasions"),
    more={
        "Monitor": "hf_stages.monitors.base",
        "MonitorCallback": "hf_stages.monitors.callback",
        "Watcher": "hf_stages.monitors.base",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
