"""The monitors that most runs want, as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers.utils import logging

from hf_stages.layers.levels import quantized_layers
from hf_stages.layers.recurrent import find_recurrence
from hf_stages.monitors.base import Monitor, WatchedRun
from hf_stages.monitors.gradient_norm import GradientNorm
from hf_stages.monitors.loss_by_source import LossBySource
from hf_stages.monitors.loss_shares import LossShares
from hf_stages.monitors.quantized_weights import QuantizedWeights
from hf_stages.monitors.raw_loss import RawLoss
from hf_stages.monitors.sampled_depth import SampledDepth
from hf_stages.monitors.throughput import Throughput
from hf_stages.monitors.token_correlation import TokenCorrelation
from hf_stages.monitors.update_ratio import UpdateRatio

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class RunHealth(Monitor):
    """Stands for the monitors that most runs want, as far as they apply to the run.

    Always: ``RawLoss``, ``GradientNorm``, ``UpdateRatio``, ``Throughput``. ``TokenCorrelation``, where the model has
    blocks that hidden states pass through and the data has rows; ``QuantizedWeights``, where it has quantized layers;
    ``SampledDepth`` with a recurrent core; ``LossShares``, where the loss has several terms; ``LossBySource``, where
    the data has several sources.

    >>> RunHealth().logs[:3]
    ('raw_loss', 'raw_loss_max', 'grad_norm_mean')
    """

    probe: Any = None
    """Rows for the correlation of tokens: see ``TokenCorrelation``."""
    rows: int = 4
    """How many rows of it, and of each source."""

    logs: ClassVar[tuple[str, ...]] = (
        *RawLoss.logs, *GradientNorm.logs, *UpdateRatio.logs, *Throughput.logs, *TokenCorrelation.logs,
        *QuantizedWeights.logs, *SampledDepth.logs, *LossShares.logs, *LossBySource.logs,
    )  # fmt: skip

    def members(self, run: WatchedRun) -> Iterator[Monitor]:
        """Give the monitors that apply to a run."""
        yield from (RawLoss(), GradientNorm(), UpdateRatio(), Throughput())
        correlation = TokenCorrelation(probe=self.probe, rows=self.rows)
        if self.probe is not None or _works(correlation, run):
            yield correlation
        if quantized_layers(run.model) and not run.sharded:
            yield QuantizedWeights()
        if find_recurrence(run.model) is not None:
            yield SampledDepth()
        if len(run.terms) > 1:
            yield LossShares()
        by_source = LossBySource(rows=self.rows)
        if len(run.sources) > 1 and _works(by_source, run):
            yield by_source


def _works(monitor: Monitor, run: WatchedRun) -> bool:
    try:
        monitor.check(run)
        monitor.watch(run)  # type: ignore[attr-defined]
    except ValueError as error:
        logger.warning(f"RunHealth: {error}")
        return False
    return True
