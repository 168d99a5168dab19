"""A recurrent core: some of a model's blocks run several times, on a state that each cycle betters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_stages.core.micro_batch import current_micro_batch
from hf_stages.core.random_depth import draw_depths
from hf_stages.layers.adaptive_exit import Cycles, CycleWatch, ExitRule, Settling, check_growing
from hf_stages.layers.cycle_cache import CycleCache, check_cache
from hf_stages.layers.own_type import TYPE, record_of

ADAPTERS = ("concat", "add")
STATES = ("normal", "zeros", "input")
STATE_STD = 0.4**0.5
"""Standard deviation of the random initial state (Huginn's)."""


class RecurrentCore(nn.Module):
    """The block that stands for a model's looped blocks: from the prelude's output it makes what the coda reads.

    Each cycle computes ``state = blocks(adapter(state, input))``, and starts from a random state. In training the
    number of cycles is drawn for each micro-batch, and gradients flow through the last ``backprop`` cycles. In
    evaluation it is ``depth``, and every token starts from the same fixed vector: logits depend neither on padding nor
    on a cache.

    Args:
        layers: The looped blocks. Each knows its slot in a cache (``self_attn.layer_idx``).
        config: The model's config. Its number of layers counts each cycle's, so that caches get as many slots.
        first: How many blocks come before.
        total: Blocks of the model, each counted once.
        adapter: ``"concat"``: a linear layer on [state; input]. ``"add"``: their sum.
        state_init: Where the state begins: ``"normal"``, ``"zeros"``, or ``"input"``, the prelude's output.
        mean_depth: The mean of what is drawn in training; one less than the mean number of cycles.
        depth: Cycles in evaluation.
        backprop: Cycles that gradients flow through.
        exit: When a token may leave before the last cycle, in evaluation and generation.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        config: Any,
        *,
        first: int,
        total: int,
        adapter: str = "concat",
        state_init: str = "normal",
        mean_depth: float = 32.0,
        depth: int = 32,
        backprop: int = 8,
        exit: ExitRule | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.config = layers, config
        self.first, self.total = first, total
        self.state_init, self.mean_depth, self.backprop = state_init, mean_depth, backprop
        weight = next(layers.parameters())
        width = config.hidden_size
        self.adapter = None
        if adapter == "concat":
            self.adapter = nn.Linear(2 * width, width, bias=False, device=weight.device, dtype=weight.dtype)
        gated = exit is not None and exit.kind == "gate"
        self.gate = nn.Linear(width, 1, device=weight.device, dtype=weight.dtype) if gated else None
        self.depth, self.exit = depth, exit
        self.read_out: Any = None
        """A ReadOut: makes of a state what enters the head, and logits."""
        self.cycle_watch: CycleWatch | None = None
        self.last_cycles: torch.Tensor | None = None
        """Cycles after which each token left, in the newest forward where tokens may leave."""
        self.last_depth: int | None = None
        """Cycles of the newest forward."""
        self.last_states: tuple[torch.Tensor, torch.Tensor] | None = None
        """The state before the last cycle, and after it. Kept within ``at_depth`` only."""
        self._is_measured = False
        self._carried: _Carried | None = None
        self._vectors: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def forward(self, hidden_states: torch.Tensor, past_key_values: Any = None, **kwargs: Any) -> torch.Tensor:
        depth = self.last_depth = self._choose_depth()
        if self._trains:
            past_key_values = None  # nobody reads it, and memory would grow with every cycle
        if past_key_values is not None and not torch.compiler.is_compiling():
            check_cache(past_key_values, depth, self.total + (depth - 1) * len(self.layers), self.config)
        if self.exit is not None and not (self._trains or self._is_measured or self._is_watched()):
            return self._run_until_settled(hidden_states, depth, past_key_values, kwargs)
        return self._run(hidden_states, depth, past_key_values, kwargs)

    def _run(self, given: torch.Tensor, depth: int, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Run all cycles, the last ones with gradients."""
        done, state = (0, None) if self._carried is None else self._carried.begin(given, depth, kwargs)
        state = before = self._initial_state(given) if state is None else state
        free = max(depth - self.backprop, 0) if torch.is_grad_enabled() else 0
        with torch.no_grad():
            for cycle in range(done, free):
                state = self._cycle(state, given, self._slots(cache, cycle), kwargs)
        if free and torch.is_autocast_enabled(given.device.type):
            torch.clear_autocast_cache()  # older versions of torch keep weights in it that were cast without a graph
        watched, states = self._is_watched(), []
        for cycle in range(max(done, free), depth):
            before = state
            state = self._cycle(state, given, self._slots(cache, cycle), kwargs)
            if watched:
                states.append(state)
        if self.cycle_watch is not None and watched:
            finals = tuple(self.read_out.before_head(one, None, kwargs) for one in states)
            self.cycle_watch.take(Cycles(finals, tuple(map(self.gate_probability, states))))
        if self._is_measured:
            self.last_states = (before.detach(), state.detach())
        if self._carried is not None:
            self._carried.end(given, state, depth, kwargs)
        return state

    def _run_until_settled(self, given: torch.Tensor, depth: int, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Run cycles until every token has left, or all are done. What a token gives later ones no longer changes."""
        assert self.exit is not None
        if self.exit.kind == "kl":
            check_growing(cache)
        state = self._initial_state(given)
        tokens = Settling(self.exit, self, state, cache, kwargs)
        for cycle in range(depth):
            view = CycleCache(cache, self._offset(cycle), tokens.settled, tokens.slots)
            state = tokens.step(state, self._cycle(state, given, view, kwargs))
            if bool(tokens.settled.all()):
                break
        for left in range(cycle + 1, depth if cache is not None else 0):
            for layer_idx, (keys, values) in tokens.slots.items():
                cache.update(keys, values, layer_idx + self._offset(left))
        self.last_cycles = tokens.cycles
        return state

    def _cycle(self, state: torch.Tensor, given: torch.Tensor, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Run the looped blocks once."""
        hidden = self.adapter(torch.cat((state, given), dim=-1)) if self.adapter is not None else state + given
        for layer in self.layers:
            hidden = layer(hidden, past_key_values=cache, **kwargs)
        return hidden

    def _is_watched(self) -> bool:
        return self.cycle_watch is not None and self.cycle_watch.is_wanted()

    def _slots(self, cache: Any, cycle: int) -> Any:
        return cache if cache is None or cycle == 0 else CycleCache(cache, self._offset(cycle))

    def _offset(self, cycle: int) -> int:
        """Return how far a layer's slot in a cycle lies behind its slot in the first one."""
        return 0 if cycle == 0 else self.total - self.first + (cycle - 1) * len(self.layers)

    def gate_probability(self, state: torch.Tensor) -> torch.Tensor:
        """Return the probability that a token leaves after a state, if it has not before."""
        assert self.gate is not None
        return torch.sigmoid(self.gate(state).float()).squeeze(-1)

    @property
    def _trains(self) -> bool:
        """Whether depth and state are random. A forward without gradients, as of a callback that generates, is none."""
        return self.training and torch.is_grad_enabled()

    def _choose_depth(self) -> int:
        if not self._trains or self._is_measured:
            return self.depth
        place = current_micro_batch()
        generator = place.generator("depth") if place is not None else None
        return int(draw_depths(self.mean_depth, generator=generator))

    def _initial_state(self, given: torch.Tensor) -> torch.Tensor:
        if self.state_init == "input":
            return given
        if self.state_init == "zeros":
            return torch.zeros_like(given)
        if not self._trains or self._is_measured:
            return self._fixed_vector(given).expand_as(given)
        place = current_micro_batch()
        generator = place.generator("state", _rank(), device=given.device) if place is not None else None
        noise = torch.randn(given.shape, generator=generator, device=given.device, dtype=torch.float32)
        return (noise * STATE_STD).to(given.dtype)

    def _fixed_vector(self, given: torch.Tensor) -> torch.Tensor:
        key = (given.device, given.dtype)
        if key not in self._vectors:
            with torch.inference_mode(False):  # it may be used in training next
                noise = torch.randn(given.shape[-1], generator=torch.Generator().manual_seed(0))
                self._vectors[key] = (noise * STATE_STD).to(device=given.device, dtype=given.dtype)
        return self._vectors[key]

    def extra_repr(self) -> str:
        return f"depth={self.depth}, mean_depth={self.mean_depth:g}, backprop={self.backprop}"


class _Carried:
    """The state that the last forward ended with, for a deeper forward on the same input."""

    def __init__(self) -> None:
        self.given: torch.Tensor | None = None
        self.state: torch.Tensor | None = None
        self.cycles = 0
        self.kwargs: dict[str, Any] = {}
        """What the blocks were called with: masks and positions change what a cycle computes."""

    def begin(self, given: torch.Tensor, depth: int, kwargs: dict[str, Any]) -> tuple[int, torch.Tensor | None]:
        """Return the cycles that are done already, and their state; 0 and None where the input is another one."""
        same = self.cycles < depth and _equal(self.given, given) and _equal(self.kwargs, kwargs)
        return (self.cycles, self.state) if same else (0, None)

    def end(self, given: torch.Tensor, state: torch.Tensor, depth: int, kwargs: dict[str, Any]) -> None:
        self.given, self.state, self.cycles, self.kwargs = given.detach(), state.detach(), depth, kwargs


def _equal(one: Any, other: Any) -> bool:
    """Tell whether two inputs hold equal tensors. What is of an unknown kind equals itself alone."""
    if torch.is_tensor(one) and torch.is_tensor(other):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is other or (isinstance(one, bool | int | float | str) and type(one) is type(other) and one == other)


def find_recurrence(model: nn.Module) -> RecurrentCore | None:
    """Return a model's recurrent core; None where it has none."""
    return next((module for module in model.modules() if isinstance(module, RecurrentCore)), None)


def freeze_gate(model: nn.Module) -> list[nn.Parameter]:
    """Let no loss train a core's exit gate. Return what was trainable of it, to be made so again.

    Where nothing reads the gate, DDP would wait for its gradient, and weight decay would shrink it.
    """
    core = find_recurrence(model)
    gate = core.gate if core is not None else None
    trainable = [parameter for parameter in gate.parameters() if parameter.requires_grad] if gate is not None else []
    for parameter in trainable:
        parameter.requires_grad_(False)
    return trainable


def set_depth(model: nn.Module, depth: int) -> None:
    """Let a model run so many cycles in evaluation and generation, also after it is saved and loaded."""
    _core_of(model, "set_depth")
    set_training_depth(model, depth=depth)


def set_training_depth(
    model: nn.Module, *, mean_depth: float | None = None, depth: int | None = None, backprop: int | None = None
) -> None:
    """Change what a core runs, and note it in the config, so that it holds after the model is saved and loaded."""
    core = _core_of(model, "set_training_depth")
    if core._is_measured:
        raise ValueError(
            "set_depth: expected to be called outside of at_depth(...), after which the model has its own depth again"
        )
    if depth is not None:
        _run_at(core, depth)
    core.mean_depth = core.mean_depth if mean_depth is None else mean_depth
    core.backprop = core.backprop if backprop is None else backprop
    record = copy.deepcopy(record_of(core.config))
    if record is None:
        return
    for part in record["transforms"]:
        if part["use"] == "MakeRecurrent":
            part.update(mean_depth=core.mean_depth, depth=core.depth, backprop=core.backprop)
    setattr(core.config, TYPE, record)


@contextmanager
def at_depth(model: nn.Module, depth: int) -> Iterator[RecurrentCore]:
    """Let a model run so many cycles, from the same initial state, within the block; in training mode too.

    Every token runs them all, also where the model has a rule by which tokens leave earlier.

    The block gets the core, whose ``last_states`` are the states around the last cycle of the newest forward.
    """
    core = _core_of(model, "at_depth")
    before = core.depth, core._is_measured
    _run_at(core, depth)
    core._is_measured = True
    try:
        yield core
    finally:
        core._is_measured, core.last_states = before[1], None
        _run_at(core, before[0])


@contextmanager
def carrying_states(model: nn.Module) -> Iterator[None]:
    """Let a forward within the block go on from the state of the last one, where it is deeper and its input is equal.

    The same batch at depths 1, 4 and 16 so takes 16 cycles, not 21.
    """
    core = _core_of(model, "carrying_states")
    core._carried = _Carried()
    try:
        yield
    finally:
        core._carried = None


def set_layer_count(core: RecurrentCore) -> None:
    """Say in the config how many layers run at the core's depth: a cache has a slot for each."""
    config = core.config
    config.num_hidden_layers = core.total + (core.depth - 1) * len(core.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * config.num_hidden_layers


def _run_at(core: RecurrentCore, depth: int) -> None:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth: expected a whole number of cycles, 1 or more, got {depth!r}")
    core.depth = depth
    set_layer_count(core)


def _core_of(model: nn.Module, where: str) -> RecurrentCore:
    core = find_recurrence(model)
    if core is None:
        raise ValueError(
            f"{where}: {type(model).__name__} has no recurrent core, so it has one depth; MakeRecurrent gives it one"
        )
    return core


def _rank() -> int:
    on = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if on else 0
