"""The projections of a block that hold attention heads and feed-forward neurons, found by their names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

_QUERY_KEY_VALUE = (
    ("query", "key", "value"),  # BERT and its kin
    ("q_proj", "k_proj", "v_proj"),  # Llama, BART, ViT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # T5
)
_ATTENTION_OUT = ("o_proj", "out_proj", "out_lin", "o", "c_proj")
_FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("intermediate.dense",), "output.dense"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("c_fc",), "c_proj"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
)
_BIAS = "relative_attention_bias"


@dataclass(frozen=True)
class Widths:
    """The numbers of one stack."""

    heads: int
    groups: int
    """Heads of keys and values."""
    size: int
    """Width of one head."""
    neurons: int = 0

    @property
    def across(self) -> int:
        """The width of all heads together."""
        return self.heads * self.size


@dataclass(frozen=True)
class Rows:
    """Outputs of a projection that belong to heads, side by side, beginning with output ``start``."""

    name: str
    start: int
    heads: int


@dataclass(frozen=True)
class Attention:
    """One attention. Names are full names in the model."""

    core: str
    """The module that holds the projections."""
    place: str
    """The core's name within its block."""
    query: Rows
    key: Rows
    value: Rows
    out: str
    """The projection whose inputs are the heads."""
    bias: str | None
    """T5's table of position biases: a column for each head."""


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward part: neurons are outputs of each of ``into`` and inputs of ``out``."""

    into: tuple[str, ...]
    """Two where a gate multiplies."""
    out: str


def find_attentions(path: str, block: nn.Module, widths: Widths) -> list[Attention]:
    """Find the attentions of a block; ValueError where it has none, or one that does not fit the config's numbers."""
    found = []
    for place, core in block.named_modules():
        rows = _query_key_value(core, widths)
        if rows is not None:
            name = f"{path}.{place}"
            out = _out_of(block, place)
            if out is None:
                raise ValueError(f"{name}: its output projection goes by none of the names that are known")
            bias = f"{name}.{_BIAS}" if isinstance(getattr(core, _BIAS, None), nn.Embedding) else None
            query, key, value = (replace(part, name=f"{name}.{part.name}") for part in rows)
            found.append(Attention(name, place, query, key, value, f"{path}.{out}", bias))
            _check_sizes(block, path, found[-1], widths)
    if not found:
        raise ValueError(
            f"{path} ({type(block).__name__}) has no attention with queries, keys and values in projections whose "
            "layout is known; leave its heads: heads=1.0"
        )
    return found


def find_feed_forwards(path: str, block: nn.Module) -> list[FeedForward]:
    """Find the feed-forward parts of a block; ValueError where there is none, or a mixture of experts."""
    found = []
    for place, module in block.named_modules():
        if "expert" in type(module).__name__.lower() or "moe" in type(module).__name__.lower():
            raise ValueError(
                f"{path}.{place} is a {type(module).__name__}: neurons of experts are not reduced; leave them: ffn=1.0"
            )
        for into, out in _FEED_FORWARD:
            if all(_child(module, name) is not None for name in (*into, out)):
                name = f"{path}.{place}" if place else path
                found.append(FeedForward(tuple(f"{name}.{part}" for part in into), f"{name}.{out}"))
                break
    if not found:
        raise ValueError(
            f"{path} ({type(block).__name__}) has no feed-forward part whose layout is known; leave its neurons: "
            "ffn=1.0"
        )
    return found


def width_of(model: nn.Module, part: FeedForward) -> int:
    """Return how many neurons it has; ValueError where its projections do not agree."""
    outs = [features(model.get_submodule(name))[1] for name in part.into]
    neurons = features(model.get_submodule(part.out))[0]
    if set(outs) != {neurons}:
        raise ValueError(f"{part.out} takes {neurons} neurons, {part.into[0]} gives {outs[0]}: expected as many")
    return neurons


def features(module: Any) -> tuple[int, int]:
    """Return a projection's inputs and outputs; ValueError for one that is not plain."""
    if type(module) is nn.Linear:
        return module.in_features, module.out_features
    if type(module) is Conv1D:
        return module.nx, module.nf
    raise ValueError(f"expected a plain Linear or Conv1D, got a {type(module).__name__}")


# ---- names ----------------------------------------------------------------------------------------------------------


def _query_key_value(core: nn.Module, widths: Widths) -> tuple[Rows, Rows, Rows] | None:
    heads, groups, whole = widths.heads, widths.groups, widths.across
    for names in _QUERY_KEY_VALUE:
        if all(_child(core, name) is not None for name in names):
            query, key, value = names
            return Rows(query, 0, heads), Rows(key, 0, groups), Rows(value, 0, groups)
    if isinstance(_child(core, "c_attn"), Conv1D):  # GPT-2: one after another in a single projection
        if _child(core, "q_attn") is not None:
            return Rows("q_attn", 0, heads), Rows("c_attn", 0, heads), Rows("c_attn", whole, heads)
        return Rows("c_attn", 0, heads), Rows("c_attn", whole, heads), Rows("c_attn", 2 * whole, heads)
    return None


def _out_of(block: nn.Module, place: str) -> str | None:
    """Return the output projection in the core, or beside it as in BERT (attention.self, attention.output.dense)."""
    core = block.get_submodule(place)
    for name in _ATTENTION_OUT:
        if _child(core, name) is not None:
            return f"{place}.{name}"
    around = place.rpartition(".")[0]
    beside = f"{around}.output.dense"
    return beside if around and _child(block, beside) is not None else None


def _check_sizes(block: nn.Module, path: str, found: Attention, widths: Widths) -> None:
    rows: dict[str, int] = {}
    for part in (found.query, found.key, found.value):
        rows[part.name] = rows.get(part.name, 0) + part.heads * widths.size
    wanted = [(name, 1, count) for name, count in rows.items()] + [(found.out, 0, widths.across)]
    for name, side, count in wanted:
        given = features(block.get_submodule(name.removeprefix(f"{path}.")))[side]
        if given != count:
            raise ValueError(
                f"{name}: expected {count} {('inputs', 'outputs')[side]} for {widths.heads} heads ({widths.groups} of "
                f"keys) of {widths.size}, got {given}; leave the heads: heads=1.0"
            )


def _child(module: nn.Module, name: str) -> nn.Module | None:
    child: Any = module
    for part in name.split("."):
        child = getattr(child, "_modules", {}).get(part)
    return child if isinstance(child, nn.Linear | Conv1D) else None
