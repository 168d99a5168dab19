"""Stores the logits of a large vocabulary as the k largest and the probability of the rest.

Stored for each position are the k largest log-probabilities and their tokens, the log-sum-exp of all logits, and the
probability of all other tokens (the tail). When read back, the tail is divided evenly among the other tokens.

The error is bounded. Let p be the teacher's distribution, q the distribution read back, s the student's, tail the
probability not stored, and m the number of tokens it is divided among. p and q agree on the k tokens (up to the
rounding of the stored dtype), so

- the gradient of KL(teacher || student) by a position's logits, s - p, is off by |p - q| <= 2 tail in sum over the
  tokens, whatever the student is. At a temperature of T > 1 both tails grow, the even one most (x ** (1/T) is concave):
  the softened distributions differ by at most 2 tail_T, the tail of q at T. At T < 1 tails shrink: 2 tail holds.
- the value is off by at most tail * (log m + spread), where spread is how far the student's log-probabilities of those
m tokens lie apart; the part with log m does not depend on the student.

KL(student || teacher) and Jensen-Shannon read the teacher's logarithms in the tail; there is no such bound for them.
"""

from __future__ import annotations

import math

import torch
from torch import nn

_CHUNK = 2**25


def encode_top_k(logits: torch.Tensor, k: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Encode (positions, tokens) as ``value`` and ``index`` (positions, k), ``rest`` (positions, 2) and the ``kept``
    probability."""
    step = max(1, _CHUNK // logits.shape[-1])
    parts = [_encode(chunk.float(), k, dtype) for chunk in logits.split(step)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode(logits: torch.Tensor, k: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    whole = logits.logsumexp(-1, keepdim=True)
    top, index = logits.topk(k, -1)
    others = logits.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
    even = others - whole - math.log(max(logits.shape[-1] - k, 1))
    return {
        "value": (top - whole).to(dtype),
        "index": index.to(torch.int32),
        "rest": torch.cat((whole, even), -1),
        "kept": (top - whole).exp().sum(-1),
    }


def pack_logits(value: torch.Tensor, index: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Pack k logits, their tokens and the logit of all others into one tensor (..., 2k + 1). float32 holds 16 million
    tokens."""
    whole, even = rest[..., :1], rest[..., 1:]
    return torch.cat((value.float() + whole, index.float(), even + whole), -1)


class UnpackLogits(nn.Module):
    """An output head whose input is packed logits: losses that read logits a chunk at a time unpack one chunk."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.out_features = classes

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        k = packed.shape[-1] // 2
        logits = packed.new_empty((*packed.shape[:-1], self.out_features))
        logits.copy_(packed[..., -1:].expand_as(logits))
        return logits.scatter_(-1, packed[..., k : 2 * k].long(), packed[..., :k])
