"""Keep, by hooks on one model, what a stage's losses need of a forward, and nothing when nobody asks.

Hooks are set before the model is wrapped or compiled, once for the stage. A compiled model would not call hooks that
are set later. They only keep references, so activation checkpointing recomputes exactly what it ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hf_stages.core.randomness import preserve_random_state
from hf_stages.layers.adaptive_exit import Cycles, CycleWatch
from hf_stages.layers.blocks import base_of, blocks_of
from hf_stages.layers.recurrent import find_recurrence
from hf_stages.models.attention_capture import attention_module, capture_attention
from hf_stages.models.signals import Attention, Head

WHOLE = frozenset({"loss", "logits", "outputs"})
"""Needs for which the model must run to its end, as it always does."""


class _StopForward(Exception):
    """Ends a teacher's forward where all that is needed of it has been captured."""


def _nothing_projected(captured: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    return {}, dict(captured)


@dataclass(frozen=True)
class CaptureRequest:
    """What one forward is to leave behind."""

    needs: frozenset[str]
    """Keys of signals to keep (see ``hf_stages.models.signals``)."""
    whole: bool = False
    """The model returns its outputs as it always does, and they are kept under ``outputs``."""
    outputs: bool = False
    """The model's outputs are kept under ``outputs``, whatever the forward returns."""
    project: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Any]] = _nothing_projected
    """Makes more signals of the captured ones within the model's forward (projections), and says which tensors the
    losses read: DDP waits for a gradient of every parameter below what the forward returns."""

    @property
    def runs_to_the_end(self) -> bool:
        return bool(self.needs & WHOLE)


class Capture:
    """Hooks on one model that keep what ``needs`` names, or the part of it that a ``CaptureRequest`` asks for.

    Args:
        model: The model that is watched, not yet wrapped or compiled.
        needs: All that any forward may be asked for.
        defer_head: Whether the output head may be left to the losses, which apply it a chunk at a time.
        stop: Whether a forward ends where its last need is met (teachers).
    """

    def __init__(self, model: nn.Module, needs: frozenset[str], *, defer_head: bool = True, stop: bool = False) -> None:
        self.model, self.needs = model, needs
        self._all = CaptureRequest(needs)
        self._request: CaptureRequest | None = None
        """The request of the forward in progress; None outside of ``collecting``."""
        self._captured: dict[str, Any] = {}
        self._expects_graph = False
        self._is_wanted = True
        """Whether the forward in progress is one to keep: where there is to be a graph, not one under ``no_grad``."""
        self._head_is_checked = False
        self._undo: list[Callable[[], None]] = []
        # Without a need for whole logits the head runs on one token: for a large vocabulary it is most of the work.
        own_head = getattr(base_of(model), "get_output_embeddings", lambda: None)()
        self.head = own_head if defer_head else None
        self._cycles_head = own_head if "cycles" in needs else None
        """Reads out what each cycle ends with, however the last one's logits are made."""
        try:
            self._install(stop)
        except BaseException:
            self.remove()
            raise

    def _install(self, stop: bool) -> None:
        self._add(self.model.register_forward_pre_hook(self._enter))
        for key in sorted(self.needs - WHOLE - {"final"}):
            self._watch(key)
        if stop and not self.needs & (WHOLE | {"final"}):
            self._stop_at_deepest()
        if self.head is not None:
            self._add(self.head.register_forward_pre_hook(self._head_on_one_token))
        self._add(self.model.register_forward_hook(self._finish))

    def check_head(self, run: Callable[[], Any], request: CaptureRequest | None = None) -> None:
        """Find out, once, whether the model changes its head's output (by a scale, a soft cap, a bias). Then do not
        defer it.

        Known values are put in the place of the head's output. Logits that differ from them were changed. Weights and
        data have no influence on that, so every rank and every resumed run comes to the same answer.
        """
        if self._head_is_checked:
            return
        request = request or self._all
        deferred = self.head if "final" in request.needs and not request.runs_to_the_end else None
        head = deferred if deferred is not None or "cycles" not in request.needs else self._cycles_head
        if head is None:
            return
        self._head_is_checked = True
        planted: list[torch.Tensor] = []

        def plant(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            values = torch.linspace(-40, 40, output.shape[-1], device=output.device).to(output.dtype)
            planted.append(values.expand_as(output).contiguous())
            return planted[-1].clone()

        handle = head.register_forward_hook(plant)
        try:
            with torch.no_grad(), evaluating(self.model), preserve_random_state(), self.collecting(request):
                found = _logits(run())
        finally:
            handle.remove()
        if found is None or len(planted) != 1 or not torch.equal(found.float(), planted[0].float()):
            self.head = self._cycles_head = None

    @contextmanager
    def collecting(self, request: CaptureRequest | None = None) -> Iterator[dict[str, Any]]:
        """Watch one forward, and give what it left to the caller. Outside (evaluation, recomputation) nothing is kept.

        A trainer may run the model a second time under ``no_grad``, for its own metrics. The forward with the graph
        counts.
        """
        self._captured.clear()
        self._request = request or self._all
        self._expects_graph, self._is_wanted = torch.is_grad_enabled(), True
        captured: dict[str, Any] = {}
        try:
            yield captured
        finally:
            self._request = None
            captured.update(self._captured)
            self._captured.clear()

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Return the model's outputs, or None where the forward was ended early."""
        try:
            return model(**inputs)
        except _StopForward:
            return None

    def remove(self) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _add(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    @property
    def _keeps(self) -> bool:
        return self._request is not None and self._is_wanted

    def _enter(self, module: Any, args: Any) -> None:
        self._is_wanted = torch.is_grad_enabled() or not self._expects_graph

    def _watch(self, key: str) -> None:
        stack, kind, layer = parse(key)
        if kind == "cycles":
            self._watch_cycles(key)
            return
        blocks = blocks_of(self.model, stack)
        if kind == "hidden" and layer == 0:
            self._add(blocks[0].register_forward_pre_hook(self._keep_input(key), with_kwargs=True))
        elif kind == "hidden":
            self._add(blocks[layer - 1].register_forward_hook(self._keep_output(key)))
        else:
            module = attention_module(blocks[layer - 1], f"{key} of {type(base_of(self.model)).__name__}")
            self._undo.append(capture_attention(module, self._keep_attention(key)))

    def _watch_cycles(self, key: str) -> None:
        core = find_recurrence(self.model)
        if core is None:
            raise ValueError(f"{key}: {type(base_of(self.model)).__name__} has no recurrent core; see MakeRecurrent")

        def is_wanted() -> bool:
            return self._keeps and self._request is not None and key in self._request.needs

        def keep(cycles: Cycles) -> None:
            self._captured[key] = replace(cycles, head=self._cycles_head)

        core.cycle_watch = CycleWatch(is_wanted, keep)
        self._undo.append(lambda: setattr(core, "cycle_watch", None))

    def _keep_input(self, key: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if self._keeps:
                self._captured[key] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _keep_output(self, key: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if self._keeps:
                self._captured[key] = output[0] if isinstance(output, tuple) else output

        return hook

    def _keep_attention(self, key: str) -> Callable[[Attention], None]:
        def hook(attention: Attention) -> None:
            if self._keeps:
                self._captured[key] = attention

        return hook

    def _stop_at_deepest(self) -> None:
        """End the forward where the last need is met."""

        def stop_if_complete(*_: Any) -> None:
            if self._keeps and self.needs <= self._captured.keys():
                raise _StopForward

        # Hooks run in the order they were set: what is kept of this block is kept by now. Which of several stacks runs
        # last is not known, so that each asks.
        for stack, layer in deepest(self.needs):
            blocks = blocks_of(self.model, stack)
            self._add(
                blocks[layer - 1].register_forward_hook(stop_if_complete)
                if layer
                else blocks[0].register_forward_pre_hook(stop_if_complete)
            )

    def _head_on_one_token(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        request = self._request
        if request is None or not self._is_wanted or request.whole or request.runs_to_the_end:
            return None
        if "final" in request.needs:
            if self.head is None:
                return None
            self._captured["head"] = Head(args[0], module)
        return (args[0][..., :1, :], *args[1:])

    def _finish(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        """Within the wrapper's forward: DDP looks in the outputs for the parameters that take part."""
        request = self._request
        if request is None or not self._is_wanted:
            return None
        projected, tensors_read = request.project(self._captured)
        self._captured.update(projected)
        if request.whole or request.outputs:
            self._captured["outputs"] = outputs
        if request.whole:
            return None
        if request.runs_to_the_end or ("final" in request.needs and "head" not in self._captured):
            beside = bool(projected) or "cycles" in request.needs  # the outputs do not hang on these
            return _Marked(_named(outputs), made_for_losses=tensors_read) if beside else None
        return {"captured": tensors_read, "logits": _logits(outputs) if "final" in request.needs else None}


class _Marked(dict):
    """A model's outputs and what losses made. DDP looks into it, but does not rebuild it as it does a ModelOutput."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def parse(key: str) -> tuple[str | None, str, int]:
    """Split a key into stack, kind and layer.

    >>> parse("hidden.3"), parse("encoder.attention.1")
    ((None, 'hidden', 3), ('encoder', 'attention', 1))
    """
    if key == "cycles":
        return None, key, 0
    *stack, kind, layer = key.split(".") if "." in key else (key, "")
    if kind not in ("hidden", "attention") or not layer.isdecimal():
        raise ValueError(f"need {key!r}: expected loss, logits, final, outputs, cycles, hidden.<i> or attention.<i>")
    return (".".join(stack) or None), kind, int(layer)


def deepest(needs: frozenset[str]) -> list[tuple[str | None, int]]:
    """Return the last block of each stack that any need looks at.

    >>> deepest(frozenset({"hidden.3", "attention.4"}))
    [(None, 4)]
    """
    found: dict[str | None, int] = {}
    for stack, _, layer in map(parse, needs):
        found[stack] = max(layer, found.get(stack, 0))
    return list(found.items())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode within the block; afterwards each module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _logits(outputs: Any) -> torch.Tensor | None:
    return outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]


def _named(outputs: Any) -> dict[str, Any]:
    return dict(outputs) if isinstance(outputs, Mapping) else {str(i): value for i, value in enumerate(outputs)}
