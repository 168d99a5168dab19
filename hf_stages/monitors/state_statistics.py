"""Numbers that say how alike the hidden states of a sequence's tokens are, computed in float32.

Each needs time and memory in proportion to tokens x width; no matrix of tokens by tokens is made.
"""

from __future__ import annotations

import torch

_CHUNK = 256
_TOKENS = 256
"""At most so many tokens, spread evenly, enter the effective rank."""
_SMALLEST = 1e-18
"""States that are shorter have no direction: their squares are below what float32 can hold."""


def token_correlation(states: torch.Tensor, real: torch.Tensor, *, padded: bool = True) -> torch.Tensor:
    """Return the mean correlation between two different tokens of a sequence, over the sequences.

    Each token's state is centred over its features and scaled to length 1. Of N unit vectors x with the sum u, the mean
    over all pairs is (|u|^2 - sum |x|^2) / (N (N - 1)), which needs no matrix of pairs. It is 1 where all tokens
    are the same, and near 0 where they are independent. Sequences of fewer than two tokens do not count.

    Args:
        states: (rows, tokens, width), of any dtype.
        real: (rows, tokens), nonzero where a token is no padding.
        padded: Whether there is any padding. False saves a pass over the states, about half of the time.

    >>> same = torch.tensor([1.0, 2.0, 4.0]).expand(1, 5, 3)
    >>> round(float(token_correlation(same, torch.ones(1, 5))), 6)
    1.0
    """
    total, count = (torch.zeros((), device=states.device) for _ in range(2))
    buffer = torch.empty(min(_CHUNK, states.shape[1]), states.shape[2], device=states.device)
    for row, kept in zip(states.detach(), real.to(torch.float32), strict=True):
        summed, squares = torch.zeros_like(buffer[0]), torch.zeros_like(total)
        for tokens, some in zip(row.split(_CHUNK), kept.split(_CHUNK), strict=True):
            # Centred into one small buffer: a copy of all states takes longer than all else here.
            centred = buffer[: len(tokens)]
            torch.sub(tokens, tokens.mean(-1, keepdim=True, dtype=torch.float32), out=centred)
            if padded:
                centred.masked_fill_(some[:, None] == 0, 0.0)  # a weight of 0 would not hide NaN in padding
            norms = torch.linalg.vector_norm(centred, dim=-1)
            weights = torch.where(norms < _SMALLEST, 0.0, some / norms)
            summed = summed + weights @ centred
            squares = squares + (weights * norms).square().sum()  # their number, but for rounding
        n = kept.sum()
        pairs = n * (n - 1)
        total = total + torch.where(pairs > 0, (summed.square().sum() - squares) / pairs.clamp(min=1), 0.0)
        count = count + (pairs > 0)
    return total / count


def effective_rank(states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return how many directions the tokens' states fill: 1 where all are alike, at most their width.

    It is the participation ratio (sum l)^2 / sum l^2 of the eigenvalues l of the covariance of the unit vectors that
    ``token_correlation`` is made of, over at most 256 tokens, spread evenly. Unlike the exponential of the entropy of
    singular values it needs no decomposition, which would wait for the device.

    >>> round(float(effective_rank(torch.tensor([1.0, 2.0, 4.0]).expand(1, 5, 3), torch.ones(1, 5))), 6)
    1.0
    """
    flat, kept = states.flatten(0, 1), real.flatten().to(torch.float32)
    step = -(-len(flat) // _TOKENS)
    flat, kept = flat[::step].float(), kept[::step]
    flat = (flat - flat.mean(-1, keepdim=True)).masked_fill(kept[:, None] == 0, 0.0)
    norms = torch.linalg.vector_norm(flat, dim=-1)
    unit = flat * torch.where(norms < _SMALLEST, 0.0, 1.0 / norms)[:, None]
    smaller = unit @ unit.t() if unit.shape[0] <= unit.shape[1] else unit.t() @ unit
    return unit.square().sum().square() / smaller.square().sum()


def state_norm(states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean length of the tokens' states.

    >>> float(state_norm(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]])))
    5.0
    """
    norms = torch.cat([torch.linalg.vector_norm(some.float(), dim=-1) for some in states.flatten(0, 1).split(_CHUNK)])
    norms, kept = norms.view(states.shape[:2]), real.to(torch.float32)
    return torch.where(kept > 0, norms, 0.0).sum() / kept.sum()


def state_change(before: torch.Tensor, after: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean of |after - before| / |after| over the tokens: how far a recurrent core is from settling.

    >>> float(state_change(torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[3.0, 4.0]]]), torch.ones(1, 1)))
    0.6000000238418579
    """
    moved = torch.linalg.vector_norm(after.float() - before.float(), dim=-1)
    lengths = torch.linalg.vector_norm(after, dim=-1, dtype=torch.float32)
    kept = real.to(torch.float32)
    return torch.where(kept > 0, moved / lengths.clamp(min=1e-30), 0.0).sum() / kept.sum()
