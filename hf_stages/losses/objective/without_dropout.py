"""Run a forward in training mode, but without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hf_stages.layers.recurrent import RecurrentCore


class _WithoutDropout(TorchFunctionMode):
    """Drops nothing, in whatever mode a module is."""

    _DROPS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.alpha_dropout)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._DROPS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@contextmanager
def training_without_dropout(model: nn.Module) -> Iterator[None]:
    """Put the model in training mode without dropout and without moving running statistics; restore it afterwards.

    A recurrent core, which draws its depth in training, runs as in evaluation.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, nn.modules.batchnorm._BatchNorm | RecurrentCore):
            module.training = False
    try:
        with _WithoutDropout():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
