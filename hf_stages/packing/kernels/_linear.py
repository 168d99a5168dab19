"""``linear`` on packed weights: the fastest way to the library, with a gradient where one is needed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hf_stages.layers.activations import Activations
from hf_stages.layers.packed_levels import BITS
from hf_stages.packing.kernels import library, plain
from hf_stages.packing.kernels._call import out_of_memory, prepare_call
from hf_stages.packing.kernels._unpack import dense, unpacked_rows

_FEW_ROWS = 16
"""Up to so many rows of full-precision activations, adding x and -x is faster than unpacking the weights."""
_CHUNK_WEIGHTS = 1 << 20
"""How many weights are unpacked at a time: they stay in the cache."""


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    levels: str,
    in_features: int,
    activations: Activations | None,
    clip: torch.Tensor | None = None,
    cache: dict[str, Any] | None = None,
) -> torch.Tensor:
    """Compute ``F.linear(activations(x.float(), clip), effective weight, bias)`` in x's dtype, on packed weights.

    Dot products of codes are exact. ``x`` and ``bias`` get gradients; that of ``x`` passes straight through the
    rounding.

    Args:
        x: The input, [..., in]. weight: The bytes as packing writes them, uint8 or int8: ``ternary`` [out, in/4],
        ``binary`` [out, in/8], ``split``
            [2, out, in/8].
        scale: The scales, [out, groups]; of split weights [2, out, groups].
        bias: The bias, [out], or None.
        levels: ``ternary``, ``binary`` or ``split``.
        in_features: The number of inputs.
        activations: How the input is rounded; None: it is not.
        clip: The learned range of activations.
        cache: A dict of the layer, for what can be reused while the weight does not change.
    """
    if torch.compiler.is_compiling():
        weight = _bytes(weight)
        bits, symmetric = (0, True) if activations is None else (activations.bits, activations.symmetric)
        return _operator(x, weight, scale, bias, clip, levels, in_features, bits, symmetric)
    known = None if cache is None else cache.get("call")
    if known is not None and known.fits(x, weight, scale, bias):
        return known(x)
    weight = _bytes(weight)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Linear.apply(x, bias, weight, scale, clip, levels, in_features, activations, cache)
    return _forward(x, weight, scale, bias, levels, in_features, activations, clip, cache)


def _bytes(weight: torch.Tensor) -> torch.Tensor:
    return weight.view(torch.uint8) if weight.dtype is torch.int8 else weight


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    levels: str,
    in_features: int,
    activations: Activations | None,
    clip: torch.Tensor | None,
    cache: dict[str, Any] | None,
) -> torch.Tensor:
    rows, groups = _check_shapes(x, weight, scale, bias, levels, in_features)
    name = library.library_path() if x.is_cpu else None
    if name is None:
        return plain.linear(x, weight, scale, bias, levels, in_features, activations, clip, cache)
    if cache is not None and activations is not None and activations.symmetric and clip is None:
        prepare_call(cache, x, weight, scale, bias, levels, in_features, activations.top)
    bits, halves, found = BITS[levels], 2 if levels == "split" else 1, library.library()
    given = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
    if not weight.is_contiguous():
        weight = weight.contiguous()
    if scale.dtype is not torch.float32 or not scale.is_contiguous():
        scale = scale.float().contiguous()
    if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
        bias = bias.float().contiguous()
    count = given.numel() // in_features
    if activations is None and count > _FEW_ROWS:
        return _multiply_unpacked(given, weight, scale, bias, levels).to(x.dtype)
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    pointers = given.data_ptr(), weight.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr()
    sizes = count, rows, in_features, groups, bits, halves
    threads = torch.get_num_threads()
    if activations is None:
        failed = found.lb_exact(name, threads, *pointers, y.data_ptr(), *sizes)
    else:
        low, high = (0.0, 0.0) if clip is None else _learned_range(clip, activations.symmetric)
        sums = (
            None if activations.symmetric else _sums_of_levels(weight, halves * rows, in_features, groups, bits, cache)
        )
        failed = found.lb_linear(
            name,
            threads,
            *pointers,
            None if sums is None else sums.data_ptr(),
            y.data_ptr(),
            *sizes,
            activations.top,
            activations.symmetric,
            clip is not None,
            low,
            high,
        )
    if failed:
        raise out_of_memory(count, in_features)
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def _multiply_unpacked(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: Any, levels: str
) -> torch.Tensor:
    """Multiply full-precision activations: the weights are unpacked and multiplied some rows at a time."""
    width, rows = x.shape[-1], weight.shape[-2]
    step = max(1, _CHUNK_WEIGHTS // width)
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    for row in range(0, rows, step):
        stop = min(row + step, rows)
        part = unpacked_rows(weight, scale, levels, width, row, stop)
        y[..., row:stop] = F.linear(x, part, None if bias is None else bias[row:stop])
    return y


def _check_shapes(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, levels: str, in_features: int
) -> tuple[int, int]:
    """Check all shapes and return outputs and groups.

    The library would read beyond the tensors where they are wrong.
    """
    if levels not in BITS:
        raise ValueError(f"levels: expected one of {', '.join(BITS)}, got {levels!r}")
    given, shape, scales = x.shape, weight.shape, scale.shape
    columns, lead = -(-in_features * BITS[levels] // 8), (2,) if levels == "split" else ()
    rows, groups = (shape[-2], scales[-1]) if len(shape) > 1 and len(scales) > 1 else (0, 0)
    if not given or in_features < 1 or given[-1] != in_features:
        raise ValueError(f"x: expected [..., {in_features}], got {list(given)}")
    if shape != (*lead, rows, columns) or weight.dtype is not torch.uint8:
        wanted = ", ".join(map(str, (*lead, "out", columns)))
        raise ValueError(f"weight: expected uint8 [{wanted}] for {levels}, got {weight.dtype} {list(shape)}")
    if scales != (*lead, rows, groups) or groups < 1 or in_features % groups:
        wanted = ", ".join(map(str, (*lead, rows)))
        raise ValueError(
            f"scale: expected [{wanted}, groups] with groups a divisor of {in_features}, got {list(scales)}"
        )
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias: expected [{rows}], got {list(bias.shape)}")
    cpu = x.is_cpu
    if weight.is_cpu != cpu or scale.is_cpu != cpu or (bias is not None and bias.is_cpu != cpu):
        raise ValueError(
            f"expected all on one device, got x on {x.device}, weight on {weight.device}, scale on {scale.device}"
        )
    return rows, groups


def _learned_range(clip: torch.Tensor, symmetric: bool) -> tuple[float, float]:
    """Return the learned range as ``Activations`` does. The order of arguments lets NaN through."""
    ends = clip.tolist()
    high = max(ends[-1], 1e-5)
    return (-high, high) if symmetric else (min(ends[0], 0.0), high)


def _sums_of_levels(
    weight: torch.Tensor, rows: int, columns: int, groups: int, bits: int, cache: dict[str, Any] | None
) -> Any:
    """Return the sums of levels by row and group, with which a zero point is multiplied."""

    def make() -> torch.Tensor:
        found = torch.empty(rows * groups, dtype=torch.int32)
        library.library().lb_sums(weight.data_ptr(), rows, columns, groups, bits, found.data_ptr())
        return found

    return plain.cached(cache, "sums", (weight,), make)


def _input_gradient(
    grad: Any, x: Any, weight: Any, scale: Any, clip: Any, levels: str, activations: Any, width: int
) -> Any:
    """Compute the input's gradient: straight through, and zero beyond a learned range, as in training."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    found = grad.to(wide) @ dense(weight, scale, levels, width, wide)
    if clip is not None and activations is not None:
        found = activations.gradients(found, x, clip)[0]
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        bias: Any,
        weight: Any,
        scale: Any,
        clip: Any,
        levels: str,
        width: int,
        activations: Any,
        cache: Any,
    ) -> Any:
        ctx.save_for_backward(weight, scale, clip, x if clip is not None else None)
        ctx.levels, ctx.width, ctx.activations = levels, width, activations
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype
        return _forward(x, weight, scale, bias, levels, width, activations, clip, cache)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        weight, scale, clip, x = ctx.saved_tensors
        x_grad, bias_grad = None, None
        if ctx.needs_input_grad[0]:
            x_grad = _input_gradient(grad, x, weight, scale, clip, ctx.levels, ctx.activations, ctx.width).to(
                ctx.dtypes[0]
            )
        if ctx.needs_input_grad[1]:
            bias_grad = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.dtypes[1])
        return x_grad, bias_grad, *[None] * 7


# ---- under torch.compile: one opaque operator -----------------------------------------------------------------------


@torch.library.custom_op("hf_stages::packed_linear", mutates_args=())
def _operator(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    clip: torch.Tensor | None,
    levels: str,
    in_features: int,
    bits: int,
    symmetric: bool,
) -> torch.Tensor:
    activations = Activations(bits, symmetric) if bits else None
    return _forward(x, weight, scale, bias, levels, in_features, activations, clip, None)


@_operator.register_fake
def _(x: Any, weight: Any, *_: Any) -> Any:
    return x.new_empty((*x.shape[:-1], weight.shape[-2]))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, scale, bias, clip, ctx.levels, ctx.width, bits, symmetric = inputs
    ctx.save_for_backward(weight, scale, clip, x if clip is not None else None)
    ctx.activations = Activations(bits, symmetric) if bits else None
    ctx.dtypes = x.dtype, None if bias is None else bias.dtype


def _operator_backward(ctx: Any, grad: Any) -> Any:
    weight, scale, clip, x = ctx.saved_tensors
    x_grad = _input_gradient(grad, x, weight, scale, clip, ctx.levels, ctx.activations, ctx.width).to(ctx.dtypes[0])
    bias_grad = None if ctx.dtypes[1] is None else grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.dtypes[1])
    return x_grad, None, None, bias_grad, *[None] * 5


_operator.register_autograd(_operator_backward, setup_context=_setup_context)
