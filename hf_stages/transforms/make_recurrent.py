"""A model that thinks deeper at will: some of its blocks become a core that runs several times."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_stages.core.curves import Curve
from hf_stages.core.part import Derived
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage_context import StageContext
from hf_stages.layers.adaptive_exit import THRESHOLDS, ExitRule, ReadOut
from hf_stages.layers.blocks import stack_of, stacks_of
from hf_stages.layers.own_type import mark_own_type
from hf_stages.layers.recurrent import ADAPTERS, STATES, RecurrentCore, find_recurrence, set_layer_count
from hf_stages.layers.sandwich import add_sandwich_norms, is_pre_norm_block, norms_have_gains, remove_gains
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._recurrence import as_mean_depth, check_count, mean_depth_at
from hf_stages.transforms.base import Transform

logger = logging.get_logger(__name__)
_NORMS = ("sandwich", "pre")
_STARTS = ("input", "sum")


@dataclass(frozen=True)
class MakeRecurrent(Transform):
    """The first ``prelude`` blocks read the tokens, the next ``core`` run several times, the last ``coda`` write.

    Recurrent depth as in Huginn (https://arxiv.org/abs/2502.05171): more cycles cost time and no parameters. In
    training the number of cycles is drawn anew for each micro-batch, the same on all ranks; evaluation and generation
    run ``depth`` cycles, which ``hf_stages.layers.at_depth`` changes. Blocks may be new or pretrained ones of a
    Llama- or Qwen-like decoder; drop some before with ``ReduceLayers``. With ``norm="pre"`` and the adapter "concat"
    a pretrained model computes at first, at every depth, what it did before. No stock architecture has a core: the
    config gets the project's own ``model_type``, and only hf_stages loads the saved folder.

    >>> MakeRecurrent(prelude=1, core=2, coda=1, mean_depth=8, norm="pre").keeps_function
    True
    """

    prelude: int
    """Blocks before the core."""
    core: int
    """Blocks that are looped."""
    coda: int
    """Blocks after the core. The three add up to the model's number of blocks."""
    adapter: str = field(default="concat", kw_only=True)
    """How a cycle sees the prelude's output beside its state: ``"concat"``, a linear layer on both; or ``"add"``, their
    sum."""
    adapter_start: str = field(default="input", kw_only=True)
    """What the linear layer passes on at first: ``"input"``, the prelude's output alone, as a pretrained model needs;
    or ``"sum"``, state and output alike, from which a new model learns sooner to use its state."""
    norm: str = field(default="sandwich", kw_only=True)
    """``"sandwich"``: each block gets a norm on the sums after its two parts, too. ``"pre"``: blocks stay as they are.
    """
    learned_norms: bool = field(default=True, kw_only=True)
    """False: norms of all blocks have no gains. Training then goes wrong more easily; for experiments."""
    state_init: str = field(default="normal", kw_only=True)
    """Where a state begins: ``"normal"`` (random), ``"zeros"``, or ``"input"`` (the prelude's output)."""
    mean_depth: float | Curve = field(default=32.0, kw_only=True)
    """Cycles are 1 plus a random number of this mean, with a long tail. A curve changes it over the stage."""
    backprop: int = field(default=8, kw_only=True)
    """Gradients flow through so many last cycles. Earlier ones take no memory."""
    depth: int | None = field(default=None, kw_only=True)
    """Cycles in evaluation and generation. None: the mean depth at the stage's end."""
    exit: str | None = field(default=None, kw_only=True)
    """When a token leaves before the last cycle, in evaluation and generation: ``"kl"`` (its prediction hardly moved),
    ``"change"`` (its state hardly moved), ``"gate"`` (a gate opened that ``HaltingLoss`` trains, as in Ouro); None:
    never."""
    exit_threshold: float | None = field(default=None, kw_only=True)
    """None: 5e-4 nats for ``"kl"``, 0.03 of the state's size for ``"change"``, a probability of 0.5 for ``"gate"``."""

    def __post_init__(self) -> None:
        for name in ("prelude", "core", "coda", "backprop"):
            least = 1 if name in ("core", "backprop") else 0
            check_count(f"MakeRecurrent: {name}", getattr(self, name), least)
        if self.depth is not None:
            check_count("MakeRecurrent: depth", self.depth, 1)
        choices = {"adapter": ADAPTERS, "adapter_start": _STARTS, "norm": _NORMS, "state_init": STATES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"MakeRecurrent: {name}: expected {' or '.join(map(repr, known))}, got {getattr(self, name)!r}"
                )
        if self.adapter == "add" and self.adapter_start != "input":
            raise ValueError("MakeRecurrent: adapter_start: it needs adapter='concat'; 'add' has no layer to start")
        if self.exit is None and self.exit_threshold is not None:
            raise ValueError("MakeRecurrent: exit_threshold: it needs exit=, a rule that it belongs to")
        with place_errors("MakeRecurrent"):
            self._exit_rule()
        object.__setattr__(self, "mean_depth", as_mean_depth(self.mean_depth, where="MakeRecurrent"))

    @Derived
    def keeps_function(self) -> bool:
        """True where the blocks stay as they are, and the core at first ignores its state."""
        same = self.norm == "pre" and self.learned_norms is True
        ignores_state = self.adapter == "concat" and self.adapter_start == "input"
        return same and (ignores_state or (self.state_init == "zeros" and self.depth == 1))

    varies = False

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="MakeRecurrent")
        path, blocks = self._blocks(model)
        config = _own_config(model)
        built_with: dict[str, Any] = {"num_hidden_layers": len(blocks)}
        if getattr(config, "layer_types", None):
            built_with["layer_types"] = list(config.layer_types)
        for block in blocks:
            if self.norm == "sandwich":
                add_sandwich_norms(block)
            if not self.learned_norms:
                remove_gains(block)
        mean = mean_depth_at(self.mean_depth, 1.0)
        core = RecurrentCore(
            nn.ModuleList(blocks[self.prelude : self.prelude + self.core]),
            config,
            first=self.prelude,
            total=len(blocks),
            adapter=self.adapter,
            state_init=self.state_init,
            mean_depth=mean,
            depth=self.depth or max(round(mean), 1),
            backprop=self.backprop,
            exit=self._exit_rule(),
        )
        _start_adapter(core, with_state=self.adapter_start == "sum")
        core.train(model.training)
        looped = [*blocks[: self.prelude], core, *blocks[self.prelude + self.core :]]
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.ModuleList(looped))
        core.read_out = ReadOut(model, parent, self.prelude)
        if self.exit == "kl" and (problem := core.read_out.problem()) is not None:
            raise ValueError(f"MakeRecurrent: exit='kl': {type(model).__name__} {problem}; use exit='change'")
        mark_own_type(model, replace(self, mean_depth=mean), built_with)
        set_layer_count(core)
        return model

    def check_stage(self, context: StageContext) -> None:
        """Refuse a gate that nothing would train."""
        loss = context.stage.loss
        losses = [one for one in (loss.values() if isinstance(loss, Mapping) else (loss,)) if hasattr(one, "leaves")]
        read = {need for one in losses for _, leaf, _ in one.leaves((), [], None) for need in leaf.needs}
        if self.exit == "gate" and "cycles" not in read:
            raise ValueError(
                "exit='gate': nothing in the stage's loss trains the gate, which would let tokens go at random; set "
                "loss=HaltingLoss(), or use exit='kl' or 'change', which need no training"
            )

    def as_loaded(self, model: Any) -> MakeRecurrent:
        """Leave out an exit that reads predictions where the model is loaded without the head that makes them."""
        if self.exit != "kl" or model.get_output_embeddings() is not None:
            return self
        logger.warning(
            "MakeRecurrent: exit='kl' is off: a %s has no output head, by which a state could be read out; every token "
            "runs all cycles",
            type(model).__name__,
        )
        return replace(self, exit=None, exit_threshold=None)

    def at(self, model: Any, t: float) -> None:
        """Set the mean depth of what is drawn in training."""
        core = find_recurrence(model)
        if core is not None:
            core.mean_depth = mean_depth_at(self.mean_depth, t)

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Moments go from each block to its place before, in, or after the core."""
        known, moves = set(after), {}
        for name in before:
            new = re.sub(r"^(.*?\.)(\d+)\.", lambda found: f"{found[1]}{self._place(int(found[2]))}.", name, count=1)
            if new in known:
                moves[name] = [new]
        return moves

    def _exit_rule(self) -> ExitRule | None:
        if self.exit is None:
            return None
        default = THRESHOLDS.get(self.exit, 1.0)
        return ExitRule(self.exit, default if self.exit_threshold is None else self.exit_threshold)

    def _place(self, index: int) -> str:
        """Return where a block stands afterwards, below the list of blocks."""
        if index < self.prelude:
            return str(index)
        if index < self.prelude + self.core:
            return f"{self.prelude}.layers.{index - self.prelude}"
        return str(index - self.core + 1)

    def _blocks(self, model: Any) -> tuple[str, nn.ModuleList]:
        kind = type(model).__name__
        if not isinstance(model, PreTrainedModel):
            raise ValueError(f"MakeRecurrent: expected a transformers model, got a {kind}")
        if find_recurrence(model) is not None:
            raise ValueError(
                f"MakeRecurrent: {kind} has a recurrent core already; SetRecurrence changes its depth in a later stage"
            )
        if len(stacks := stacks_of(model)) > 1:
            raise ValueError(
                f"MakeRecurrent: {kind} has {len(stacks)} stacks of blocks ({', '.join(stacks)}); expected a decoder "
                "with one"
            )
        with place_errors(f"MakeRecurrent: {kind}", drop=f"{kind}: "):
            path, blocks = stack_of(model)
        parts = (self.prelude, self.core, self.coda)
        if sum(parts) != len(blocks):
            raise ValueError(
                f"MakeRecurrent: {kind} has {len(blocks)} blocks; expected prelude + core + coda to be as many, got "
                f"{' + '.join(map(str, parts))} = {sum(parts)}. To drop blocks, put ReduceLayers before"
            )
        problem = _unknown_layout(model.config, blocks)
        if problem is not None:
            raise ValueError(
                f"MakeRecurrent: {kind}: {problem}; expected a decoder of blocks as Llama's or Qwen's (two norms, "
                "self_attn, mlp), all of one kind"
            )
        return path, blocks


def _unknown_layout(config: Any, blocks: nn.ModuleList) -> str | None:
    """Say why a core cannot be made of these blocks; None where it can."""
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "num_hidden_layers"):
        return "its config is not of a decoder alone"
    if len({type(block) for block in blocks}) > 1 or not all(map(is_pre_norm_block, blocks)):
        return f"its blocks are {', '.join(sorted({type(block).__name__ for block in blocks}))}"
    if not all(map(norms_have_gains, blocks)):
        return "its norms have no weights"
    if not all(isinstance(getattr(block.self_attn, "layer_idx", None), int) for block in blocks):
        return "its attention has no layer_idx, by which it would find its cache"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1:
        return f"its layers attend in several ways ({', '.join(kinds)}), which one core cannot hold"
    return None


def _own_config(model: Any) -> Any:
    """Give a model a config of its own: another model that is built from the one it came with stays as it was."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own
    return own


@torch.no_grad()
def _start_adapter(core: RecurrentCore, *, with_state: bool) -> None:
    """Let the adapter pass on the prelude's output, and the state or nothing of it."""
    if core.adapter is not None:
        width = core.adapter.out_features
        core.adapter.weight.zero_()
        core.adapter.weight[:, width:].fill_diagonal_(1.0)
        if with_state:
            core.adapter.weight[:, :width].fill_diagonal_(1.0)
