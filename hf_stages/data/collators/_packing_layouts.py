"""Tells a model which tokens of a packed row belong together, and finds out which way it understands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

_NEIGHBOUR, _DOCUMENT = (7, 3, 9, 4), (5, 8, 6)
_OTHER_NEIGHBOUR = (2, 6, 3, 8)
MASKED = ("blocks", "additive")


class Layout(NamedTuple):
    """One way to pack: ``mask`` and ``first`` as in ``Packed``, and whether a token sees only those before it."""

    mask: str
    first: int
    causal: bool


def positions_of(counts: Sequence[Sequence[int]], width: int, first: int = 0) -> torch.Tensor:
    """Return (rows, width) positions that begin again with each document.

    Padding repeats the last position, which no document does. So it can be recognized, and transformers takes each
    padding token for a sequence of its own.

    >>> positions_of([[3, 2], [1]], 6).tolist()
    [[0, 1, 2, 0, 1, 1], [0, 2, 2, 2, 2, 2]]
    """
    out = torch.empty(len(counts), width, dtype=torch.int64)
    for row, lengths in zip(out, counts, strict=True):
        own = torch.cat([torch.arange(first, first + n) for n in lengths])
        row[: len(own)] = own
        row[len(own) :] = own[-1] if lengths[-1] > 1 else first + 2
    return out


def block_mask(counts: Sequence[Sequence[int]], width: int, *, causal: bool, additive: bool = False) -> torch.Tensor:
    """Return (rows, 1, width, width), true where a query (row) may see a key.

    Padding sees every document, because a softmax over nothing would be NaN. Nothing sees padding, not even itself.

    >>> block_mask([[2, 1]], 4, causal=True)[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
    """
    number = torch.full((len(counts), width), -1)
    for row, lengths in zip(number, counts, strict=True):
        row[: sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = number[:, :, None] == number[:, None, :]
    if causal:
        same = same & torch.ones(width, width, dtype=torch.bool).tril()
    seen = ((number[:, :, None] < 0) | same) & (number[:, None, :] >= 0)
    seen = seen[:, None]
    # Eager attention adds its mask to the scores, as float32 whatever the model's precision is.
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min) if additive else seen


def find_layout(model: Any) -> Layout:
    """Return the first layout in which a document has the logits that it has alone, whatever its neighbour is.

    The model itself is run to find out. Some models ignore positions (BERT makes its mask without them), some let them
    begin elsewhere (RoBERTa), none reads them with ``use_cache``. Models that mix tokens by other means than attention
    (convolutions, recurrences) cannot be packed.
    """
    found = []
    with _evaluated_without_gradient(model):
        for layout in _candidates(model, _is_causal(model)):
            found.append(_find_fault(model, layout))
            if found[-1] is None:
                return layout
    raise ValueError(
        f"Packed: in {type(model).__name__} {min(filter(None, found))[1]}; tried position_ids and a mask of 4 "
        "dimensions; pad instead, or give mask= if you know better"
    )


def check_layout(model: Any, layout: Layout) -> None:
    """Refuse a second model, such as a teacher, that does not understand the layout."""
    with _evaluated_without_gradient(model):
        fault = _find_fault(model, layout)
    if fault is not None:
        raise ValueError(
            f"Packed: in {type(model).__name__} {fault[1]}; it is told by mask={layout.mask!r}, as suits the student: "
            "load both with the same attn_implementation, or pad instead"
        )


def _find_fault(model: Any, layout: Layout) -> tuple[float, str] | None:
    """Return how large the error of packed rows in this layout is, and what it is; None where they are right."""
    limit = 1e-3 if _dtype(model) == torch.float32 else 0.05
    mixed, moved = _difference(model, layout)
    if mixed < limit / 10 and moved < limit:
        return None
    what = "one packed example sees another" if mixed >= limit / 10 else "a packed example is not what it is alone"
    return mixed + moved, f"{what} (tried on a few tokens: logits differ by {max(mixed, moved):.2g} of their size)"


def _candidates(model: Any, causal: bool) -> list[Layout]:
    how = getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"
    if how.startswith("flash") or "flash" in how:
        return [Layout("flat", 0, causal)]
    blocks = "additive" if how == "eager" else "blocks"
    pad = getattr(model.config, "pad_token_id", None) or 0
    first = [Layout("positions", 0, causal)] if causal else []
    return [*first, Layout(blocks, 0, causal), Layout(blocks, pad + 1, causal)]


def _difference(model: Any, layout: Layout) -> tuple[float, float]:
    """Return how far a document's logits move with its neighbour, and from what they are alone, relative to their
    size."""
    alone = _logits(model, {"input_ids": torch.tensor([_DOCUMENT])})
    try:
        one, other = (
            _logits(model, _inputs(before, layout))[:, len(before) :] for before in (_NEIGHBOUR, _OTHER_NEIGHBOUR)
        )
    except (TypeError, ValueError, RuntimeError, IndexError):
        return float("inf"), float("inf")
    size = alone.abs().max().clamp_min(1e-12)
    return float((one - other).abs().max() / size), float((one - alone).abs().max() / size)


def attention_window(config: Any) -> int | None:
    """Return how far layers of local attention see.

    A 4-dimensional mask overrides theirs, which a short test cannot show.
    """
    known = (getattr(config, name, None) for name in ("sliding_window", "local_attention", "window_size"))
    return min((w for w in known if isinstance(w, int)), default=None)


def _inputs(before: tuple[int, ...], layout: Layout) -> dict[str, torch.Tensor]:
    counts, width = [[len(before), len(_DOCUMENT)]], len(before) + len(_DOCUMENT)
    inputs = {
        "input_ids": torch.tensor([[*before, *_DOCUMENT]]),
        "position_ids": positions_of(counts, width, layout.first),
    }
    if layout.mask in MASKED:
        inputs["attention_mask"] = block_mask(counts, width, causal=layout.causal, additive=layout.mask == "additive")
    return inputs


def _is_causal(model: Any) -> bool:
    one, other = (
        _logits(model, {"input_ids": torch.tensor([[*_DOCUMENT, last]])})[:, : len(_DOCUMENT)]
        for last in _NEIGHBOUR[:2]
    )
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max().clamp_min(1e-12))


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    vocab = model.get_input_embeddings().weight.shape[0]
    inputs = {k: v.to(model.device) for k, v in inputs.items()}
    inputs["input_ids"] = inputs["input_ids"] % vocab
    out = model(**inputs)
    return (out.logits if "logits" in out else out[0]).float()


def _dtype(model: Any) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def _evaluated_without_gradient(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
