"""How widely attention heads look, and how large their scores grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import LogSpaced, as_occasions
from hf_stages.layers.blocks import blocks_of
from hf_stages.models.attention_capture import attention_module
from hf_stages.models.attention_scores import scores, visible
from hf_stages.models.signals import Attention, key_of
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher, check_count, check_layers
from hf_stages.monitors.probes import Probe, check_blocks

_QUERIES = 256
_DEAD = 0.01


@dataclass(frozen=True)
class AttentionEntropy(Monitor):
    """Logs how widely the heads of some blocks look, and their largest score, on fixed rows.

    ``attention_entropy`` is the mean entropy of a query's attention, as a share of the greatest possible: 1 where it
    looks at all keys alike, 0 where it looks at one. Queries that see one key do not count. ``attention_max_logit`` is
    the largest score before the softmax; where it grows without end, training is about to become unstable.
    ``dead_heads`` counts heads whose entropy is below 0.01: whatever the query, they look at one token.

    >>> AttentionEntropy(layers=(1, 12)).layers
    (1, 12)
    """

    layers: tuple[int, ...] = ()
    """Blocks, counted from 1. None given: the first, the middle and the last."""
    probe: Any = None
    """The rows: a dataset, or a batch of tensors. None: the first of the evaluation set, else of the training set."""
    rows: int = 2
    """How many rows of the dataset."""
    stack: str | None = None
    """Which stack of a model of several, such as ``encoder``."""
    every: Any = field(default_factory=LogSpaced)
    """On which updates: it takes part in the first training log after each of them."""

    logs: ClassVar[tuple[str, ...]] = (
        "attention_entropy", "attention_max_logit", "dead_heads", "attention_entropy_layer_*",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_layers(self)
        as_occasions(self.every, "AttentionEntropy")
        check_count(self, "rows")

    def check(self, run: WatchedRun) -> None:
        check_blocks(run, self, self.layers, self.stack)
        blocks = blocks_of(run.model, self.stack)
        for layer in self.layers or (1,):
            try:
                attention_module(blocks[layer - 1], f"block {layer}")
            except ValueError as error:
                raise run.error(self, str(error)) from error

    def watch(self, run: WatchedRun) -> Watcher:
        return _Heads(self, run)


class _Heads(Watcher):
    def __init__(self, declared: AttentionEntropy, run: WatchedRun) -> None:
        self.probe = Probe(run, declared, rows=declared.rows, dataset=declared.probe, stack=declared.stack)
        last = self.probe.blocks
        layers = declared.layers or tuple(sorted({1, (last + 1) // 2, last}))
        self.keys = {layer: key_of("attention", layer, declared.stack) for layer in layers}
        try:
            self.log({})  # what cannot work fails here, before the first step
        except ValueError as error:
            raise run.error(declared, str(error)) from error

    def log(self, view: Mapping[str, Any]) -> Readings:
        captured = self.probe.look(frozenset(self.keys.values()))
        by_head, largest = {}, []
        for layer, key in self.keys.items():
            attention: Attention = captured[key]
            real = self.probe.real(attention.query[:, 0])
            by_head[layer], most = _entropy_by_head(attention, real)
            largest.append(most)
        together = torch.cat(list(by_head.values()))
        seen = {
            "attention_entropy": together.mean(),
            "attention_max_logit": torch.stack(largest).max(),
            "dead_heads": together.lt(_DEAD).sum(),
        }
        return seen | {f"attention_entropy_layer_{layer}": heads.mean() for layer, heads in by_head.items()}


def _entropy_by_head(attention: Attention, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each head's mean entropy as a share of the greatest possible, and the largest score of all heads."""
    heads = attention.query.shape[1]
    total = torch.zeros(heads, device=real.device)
    count = torch.zeros((), device=real.device)
    largest = torch.full((), -torch.inf, device=real.device)
    for part, seen, counts in _parts(attention, real.to(torch.float32)):
        found = scores(part).masked_fill(~seen, -torch.inf)
        keys = seen.sum(-1).to(torch.float32)
        used = counts * (keys > 1)
        chances = found.softmax(-1)
        entropy = -torch.special.xlogy(chances, chances).sum(-1) / keys.clamp(min=2).log()
        total = total + torch.where(used > 0, entropy, 0.0).sum((0, 2))
        count = count + used.sum()
        largest = torch.maximum(largest, torch.where(counts[..., None] > 0, found, -torch.inf).max())
    return total / count, largest


def _parts(attention: Attention, real: torch.Tensor) -> Iterator[tuple[Attention, torch.Tensor, torch.Tensor]]:
    """Yield some queries of one row at a time: their attention, which keys they see, and which of them count.

    So the largest tensor is of (heads, some queries, keys), however long rows are.
    """
    rows, _, length, _ = attention.query.shape
    keys = attention.key.shape[2]
    sees = visible(attention)
    whole = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=real.device) if sees is None else sees
    while whole.dim() < 4:
        whole = whole[None]
    whole = whole.expand(-1, -1, length, keys)
    for row in range(rows):
        for start in range(0, length, _QUERIES):
            end = min(start + _QUERIES, length)
            bias = attention.bias
            if bias is not None:
                bias = bias[row : row + 1] if bias.shape[0] > 1 else bias
                bias = bias[:, :, start:end] if bias.shape[2] > 1 else bias
            part = replace(
                attention,
                query=attention.query[row : row + 1, :, start:end],
                key=attention.key[row : row + 1],
                mask=None,
                causal=False,
                bias=bias,
            )
            seen = whole[row : row + 1] if whole.shape[0] > 1 else whole
            counts = real[row : row + 1, None, start:end]
            yield part, seen[:, :, start:end], counts
