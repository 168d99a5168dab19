"""Sum the divergence of the student's logits from the teacher's over positions, with few of them in memory at a time.

In distillation with a large vocabulary, full logits of two models at float32, their log-softmaxes and their gradients
fill the memory. Here positions go through in chunks. A chunk's logits are made (or read), the divergence and its
gradient are computed at float32 in closed form, and only the gradient is kept: for logits, in their dtype; for an
output head, with respect to the states that enter it and to its weights.

Every divergence of distributions is multiplied by temperature**2: its gradient then keeps its size as the temperature
grows (Hinton et al., arXiv 1503.02531), and weights of other terms need not change with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from hf_stages.models.signals import Head

_CHUNK = {"cpu": 2**25}
"""Logits per chunk, counted in one model: 256 positions at a vocabulary of 128k. Each chunk adds a gradient of the
head's size to the sum of those before. With 2**23 the loss was slower than one written plainly, with 2**25 it was not
(width 512, 1024 tokens; benchmarks/logit_memory.py)."""
_LARGER = 2**27
"""Logits per chunk on accelerators, whose multiplications are faster beside such sums. Computed, not measured."""


@dataclass(frozen=True)
class Measure:
    """A divergence of rows of logits. A call returns the sum over the rows and the gradient for the student.

    ``forward`` is KL(T||S), ``reverse`` is KL(S||T), ``jsd`` is beta KL(T||M) + (1 - beta) KL(S||M) with
    M = beta T + (1 - beta) S (arXiv 2306.13649), each times temperature**2. ``mse`` is the mean over the classes of
    the squared difference of the logits. With ``bernoulli`` each class is a distribution of its own (multi-label), and
    their divergences are summed.

    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> Measure("forward")(logits, logits, gradient=False)
    (tensor(0.), None)
    """

    kind: str
    temperature: float = 1.0
    beta: float = 0.5
    bernoulli: bool = False

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, gradient: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        student, teacher = student.float(), teacher.float()
        if self.kind == "mse":
            return _squares(student, teacher, gradient)
        if self.temperature != 1:
            student, teacher = student / self.temperature, teacher / self.temperature
        if self.bernoulli:  # sigmoid(z) is softmax([z, 0])[0]
            student, teacher = (torch.stack((z, torch.zeros_like(z)), -1) for z in (student, teacher))
        log_s, log_t = log_softmax(student, -1), log_softmax(teacher, -1)
        if self.kind == "forward":
            value, slope = _forward(log_s, log_t, gradient)
        elif self.kind == "reverse":
            value, slope = _reverse(log_s, log_t, gradient)
        else:
            value, slope = _jsd(log_s, log_t, self.beta, gradient)
        if slope is not None:
            slope = (slope[..., 0] if self.bernoulli else slope).mul_(self.temperature)
        return value * self.temperature**2, slope


def divergence(
    student: torch.Tensor | Head,
    teacher: torch.Tensor | Head,
    index: torch.Tensor,
    measure: Measure,
    chunk: int | None = None,
) -> torch.Tensor:
    """Sum ``measure`` over the positions ``index``, rising numbers into the flattened (batch, tokens).

    Either side may be logits or a ``Head``. The gradient is computed in the forward pass, so it cannot be
    differentiated again.
    """
    states, module = _flat(student)
    index = index.to(states.device)
    chunk = chunk or _CHUNK.get(states.device.type, _LARGER)
    theirs = _reader(teacher, index, states)
    if module is None:
        wanted = torch.is_grad_enabled() and states.requires_grad
        return _OverLogits.apply(states, index, theirs, measure, chunk, wanted)
    rows = states if len(index) == len(states) else states.index_select(0, index)
    weights = [p for p in module.parameters() if p.requires_grad]
    wanted = torch.is_grad_enabled() and (rows.requires_grad or bool(weights))
    return _OverHead.apply(module, theirs, measure, chunk, wanted, rows, *weights)


# ---- chunks ----------------------------------------------------------------------------------------------------------


class _OverLogits(torch.autograd.Function):
    """Goes over logits that exist: one buffer of their size and dtype keeps the gradient."""

    @staticmethod
    def forward(ctx, logits, index, teacher, measure, chunk, wanted):
        total = logits.new_zeros((), dtype=torch.float32)
        whole = len(index) == len(logits)
        kept = (torch.empty_like if whole else torch.zeros_like)(logits) if wanted else None
        for start, end in _spans(len(index), chunk, logits.shape[-1]):
            at = slice(start, end) if whole else index[start:end]
            value, slope = measure(logits[at], _same_classes(teacher(start, end), logits.shape[-1]), wanted)
            total += value
            if kept is not None:
                kept[at] = slope.to(kept.dtype)
        ctx.save_for_backward(kept)
        return total

    @staticmethod
    def backward(ctx, upstream):
        _refuse_second_derivative()
        (kept,) = ctx.saved_tensors
        return kept * upstream, None, None, None, None, None


class _OverHead(torch.autograd.Function):
    """Makes the student's logits a chunk at a time by its head.

    The head's weights are inputs, so that DDP, which waits for their gradients, sees them. The head is called as a
    module, so adapters, biases and autocast take effect.
    """

    @staticmethod
    def forward(ctx, module, teacher, measure, chunk, wanted, rows, *weights):
        total = rows.new_zeros((), dtype=torch.float32)
        for_rows = torch.empty_like(rows) if wanted and rows.requires_grad else None
        for_weights: list[Any] = [None] * len(weights)
        classes = _width(module, rows)
        for start, end in _spans(len(rows), chunk, classes):
            with torch.set_grad_enabled(wanted):
                states = rows[start:end].detach().requires_grad_(for_rows is not None)
                logits = module(states)
            value, slope = measure(logits.detach(), _same_classes(teacher(start, end), logits.shape[-1]), wanted)
            total += value
            if not wanted:
                continue
            inputs = [*([states] if for_rows is not None else []), *weights]
            found = list(torch.autograd.grad(logits, inputs, slope.to(logits.dtype), allow_unused=True))
            del logits, slope
            if for_rows is not None:
                for_rows[start:end] = found.pop(0)
            for_weights = [_added(kept, new) for kept, new in zip(for_weights, found, strict=True)]
        ctx.dtypes = [weight.dtype for weight in weights]
        ctx.save_for_backward(for_rows, *for_weights)
        return total

    @staticmethod
    def backward(ctx, upstream):
        _refuse_second_derivative()
        for_rows, *for_weights = ctx.saved_tensors
        scaled = [
            None if kept is None else (kept * upstream).to(dtype)
            for kept, dtype in zip(for_weights, ctx.dtypes, strict=True)
        ]
        return None, None, None, None, None, None if for_rows is None else for_rows * upstream, *scaled


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # create_graph=True: what is kept has no graph, and the derivative would miss this loss
        raise RuntimeError("LogitKL and LogitMSE cannot be differentiated twice: leave create_graph=True out")


def _added(kept: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    """Add at float32 over chunks: in bfloat16 each addition would round to 8 bits."""
    if new is None:
        return kept
    return new.float() if kept is None else kept.add_(new)


def _spans(rows: int, chunk: int, classes: int) -> list[tuple[int, int]]:
    """Cut rows into spans. There is at least one, so that an empty selection has a graph and zero gradients."""
    step = max(1, chunk // max(1, classes))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)] or [(0, 0)]


def _flat(source: torch.Tensor | Head) -> tuple[torch.Tensor, Any]:
    tensor, module = (source.hidden, source.module) if isinstance(source, Head) else (source, None)
    return tensor.reshape(-1, tensor.shape[-1]), module


def _reader(source: torch.Tensor | Head, index: torch.Tensor, like: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
    """Return a function that gives the teacher's logits of the positions ``index[start:end]``."""
    states, module = _flat(source)
    if len(states) != len(like):
        raise ValueError(
            f"the student's outputs have {len(like)} positions, the teacher's {len(states)}; both must see the same "
            "tokens (a prompt-tuned model adds its own)"
        )
    states, whole = states.detach(), len(index) == len(states)

    def read(start: int, end: int) -> torch.Tensor:
        rows = states[start:end] if whole else states[index[start:end]]
        with torch.no_grad():
            return (rows if module is None else module(rows)).to(like.device)

    return read


def _width(module: Any, rows: torch.Tensor) -> int:
    """Count the logits of a row: the head says it, or it is run on no row at all."""
    width = getattr(module, "out_features", None)
    if isinstance(width, int):
        return width
    with torch.no_grad():
        return module(rows[:0].detach()).shape[-1]


def _same_classes(teacher: torch.Tensor, classes: int) -> torch.Tensor:
    if teacher.shape[-1] != classes:
        raise ValueError(
            f"the student has {classes} logits per position, the teacher {teacher.shape[-1]}; they must have the same"
        )
    return teacher


# ---- divergences of distributions given as logarithms, and d/d(logits) at temperature 1 -----------------------------
# A probability of zero contributes zero, also where a class is masked (-inf) in both models. NaN is not zero and stays.


def _forward(log_s: torch.Tensor, log_t: torch.Tensor, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    p_t = log_t.exp()
    apart = log_t.sub_(log_s)  # in place: fresh memory costs more here than the arithmetic
    value = apart.mul_(p_t).sum()
    if value.device.type != "cpu" or value.isnan():  # elsewhere asking would wait for the device
        value = apart.masked_fill_(p_t == 0, 0).sum()
    return value, log_s.exp_().sub_(p_t) if gradient else None


def _reverse(log_s: torch.Tensor, log_t: torch.Tensor, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    p_s = log_s.exp()
    parts = log_s.sub_(log_t).mul_(p_s).masked_fill_(p_s == 0, 0)
    each = parts.sum(-1, keepdim=True)
    return each.sum(), parts.sub_(p_s.mul_(each)) if gradient else None


def _jsd(
    log_s: torch.Tensor, log_t: torch.Tensor, beta: float, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    p_s, p_t = log_s.exp(), log_t.exp()
    log_m = (beta * p_t).add_(p_s, alpha=1 - beta).log_()
    from_t = log_t.sub_(log_m).mul_(p_t).masked_fill_(p_t == 0, 0).sum()
    parts = log_s.sub_(log_m).mul_(p_s).masked_fill_(p_s == 0, 0)
    each = parts.sum(-1, keepdim=True)
    value = beta * from_t + (1 - beta) * each.sum()
    # d value / d p_s is (1 - beta) log(p_s / m): what comes of m's own change cancels.
    return value, parts.sub_(p_s.mul_(each)).mul_(1 - beta) if gradient else None


def _squares(student: torch.Tensor, teacher: torch.Tensor, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    apart = (student - teacher).masked_fill_(student == teacher, 0)  # -inf in both is no difference
    classes = max(1, student.shape[-1])
    return apart.square().sum() / classes, apart.mul_(2 / classes) if gradient else None
