"""Norms before the projections that low-bit weights make unsteady."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.normed_linear import NormedLinear
from hf_stages.layers.own_type import mark_own_type
from hf_stages.transforms._parameters import as_names
from hf_stages.transforms._patterns import match_names
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._projections import KINDS, blocks_with_linears, linear_layers, output_projections
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class InsertSubLN(Transform):
    """Every block gets an RMSNorm before the output projections of its attention and of its feed-forward part.

    Inputs of ternary layers then keep one scale (BitDistill, https://arxiv.org/abs/2510.13998). The gains start at 1
    and train. **The model computes something else afterwards**: in an independent study the insertion alone moved a
    0.5B model's logits by 77 % (RMS) and changed every top token, so enough training must follow. No stock architecture
    has these norms: the config gets the project's own ``model_type``, and only hf_stages loads the saved folder.
    ``o_proj`` becomes ``o_proj.linear`` beside ``o_proj.norm``; a later ``AddLora`` must name it so.

    >>> InsertSubLN(where="attention")
    InsertSubLN(modules=None, where=('attention',), eps=1e-06)
    """

    modules: str | Sequence[str] | None = None
    """Name patterns of linear layers, instead of the ones that are found by themselves."""
    where: str | Sequence[str] = field(default=KINDS, kw_only=True)
    """``"attention"``, ``"ffn"`` or both; ``"all"``: every linear layer in the blocks, as BitDistill's code has it."""
    eps: float = field(default=1e-6, kw_only=True)
    """Added to the mean square within the norm."""

    def __post_init__(self) -> None:
        if self.modules is not None:
            object.__setattr__(self, "modules", as_names(self.modules, where="InsertSubLN: modules"))
        where = as_names(self.where, where="InsertSubLN: where")
        if where != ("all",) and not set(where) <= set(KINDS):
            raise ValueError(f"InsertSubLN: where: expected 'attention', 'ffn', both or 'all', got {self.where!r}")
        where = where if where == ("all",) else tuple(kind for kind in KINDS if kind in where)
        if self.modules is not None and where != KINDS:
            raise ValueError("InsertSubLN: where: modules name the layers already; leave one of the two out")
        object.__setattr__(self, "where", where)
        if not self.eps > 0:
            raise ValueError(f"InsertSubLN: eps: expected more than 0, got {self.eps!r}")

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="InsertSubLN")
        names = self._names(model)
        layers = [model.get_submodule(name) for name in names]
        head = getattr(model, "get_output_embeddings", lambda: None)()
        for name, layer in zip(names, layers, strict=True):
            if isinstance(layer, NormedLinear):
                raise ValueError(f"InsertSubLN: {name}: it has its norm already; insert once, or name other modules=")
            if layer is head:
                raise ValueError(
                    f"InsertSubLN: {name} is the output head, which may share its weight with the embeddings"
                )
        for name, layer in zip(names, layers, strict=True):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, NormedLinear(layer, self.eps))
        mark_own_type(model, self)
        return model

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """``o_proj.weight`` to ``o_proj.linear.weight``; all else stays."""
        known, moves = set(after), {}
        for name in before:
            parent, _, leaf = name.rpartition(".")
            new = name if name in known else f"{parent}.linear.{leaf}"
            if new in known:
                moves[name] = [new]
        return moves

    def _names(self, model: Any) -> list[str]:
        with place_errors(f"InsertSubLN: {type(model).__name__}"):
            if self.modules is not None:
                return match_names(self.modules, linear_layers(model), where="modules")
            if self.where == ("all",):
                return [f"{path}.{name}" for path, _, linears in blocks_with_linears(model) for name in linears]
            return output_projections(model, tuple(self.where))
