"""Hooks on one model that keep what a stage's losses need of a forward, and nothing when nobody asks.

Hooks are set before the model is wrapped or compiled, once for the stage: set later, a compiled model would not call
them. They only keep references, so activation checkpointing recomputes exactly what it ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_stages.attention_tap import attention_module, tap
from hf_stages.layers.blocks import base_of, blocks_of
from hf_stages.losses._signals import Attention, Head

WHOLE = frozenset({"loss", "logits", "outputs"})
"""Needs for which the model must run to its end, as it always does."""


class _Enough(Exception):
    """Raised in a teacher's forward: what lies above is not needed."""


class Capture:
    """What ``needs`` names, kept in ``store`` during ``collecting()``."""

    def __init__(self, model: nn.Module, needs: frozenset[str], *, defer_head: bool = True, stop: bool = False) -> None:
        self.model, self.needs = model, needs
        self.store: dict[str, Any] = {}
        self.on = self.leave = False
        self.makers: Sequence[Callable[[Mapping[str, Any]], Mapping[str, Any]]] = ()
        """Make more signals from the captured ones within the model's forward (projections)."""
        self.whole = bool(needs & WHOLE)
        self._undo: list[Callable[[], None]] = []
        # Without a need for whole logits the output head runs on one token: for a large vocabulary it is most of the work.
        self.head = base_of(model).get_output_embeddings() if defer_head and not self.whole else None
        for key in sorted(needs - WHOLE - {"final"}):
            self._watch(key)
        if stop and not self.whole and "final" not in needs:
            self._stop_at_deepest()
        if self.head is not None:
            self._add(self.head.register_forward_pre_hook(self._behead))
        self._add(model.register_forward_hook(self._finish))

    @contextmanager
    def collecting(self, *, whole: bool = False) -> Iterator[dict[str, Any]]:
        """One forward; what it left is the caller's. Off outside: evaluation and recomputation keep nothing.

        ``whole``: the model's outputs are left as they are, and kept under ``outputs``.
        """
        self.store.clear()
        self.on, self.leave = True, whole
        found: dict[str, Any] = {}
        try:
            yield found
        finally:
            self.on = self.leave = False
            found.update(self.store)
            self.store.clear()

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The model's outputs; None where the forward was ended early."""
        try:
            return model(**inputs)
        except _Enough:
            return None

    def remove(self) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _add(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def _watch(self, key: str) -> None:
        stack, kind, layer = parse(key)
        blocks = blocks_of(self.model, stack)
        if kind == "hidden" and layer == 0:
            self._add(blocks[0].register_forward_pre_hook(self._keep_input(key), with_kwargs=True))
        elif kind == "hidden":
            self._add(blocks[layer - 1].register_forward_hook(self._keep_output(key)))
        else:
            module = attention_module(blocks[layer - 1], f"{key} of {type(base_of(self.model)).__name__}")
            self._undo.append(tap(module, self._keep_attention(key)))

    def _keep_input(self, key: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if self.on:
                self.store[key] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _keep_output(self, key: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if self.on:
                self.store[key] = output[0] if isinstance(output, tuple) else output

        return hook

    def _keep_attention(self, key: str) -> Callable[[Attention], None]:
        def note(seen: Attention) -> None:
            if self.on:
                self.store[key] = seen

        return note

    def _stop_at_deepest(self) -> None:
        """End the forward where the last need is met."""
        stack, layer = deepest(self.needs)
        blocks = blocks_of(self.model, stack)

        def enough(*_: Any) -> None:
            if self.on:
                raise _Enough

        # Hooks run in the order they were set: what is kept of this block is kept by now.
        self._add(
            blocks[layer - 1].register_forward_hook(enough) if layer else blocks[0].register_forward_pre_hook(enough)
        )

    def _behead(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self.on or self.leave:
            return None
        if "final" in self.needs:
            self.store["head"] = Head(args[0], module)
        return (args[0][..., :1, :], *args[1:])

    def _finish(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        """Within the wrapper's forward: DDP looks in the outputs for the parameters that take part."""
        if not self.on:
            return None
        made: dict[str, Any] = {}
        for maker in self.makers:
            made.update(maker(self.store))
        self.store.update(made)
        if self.leave:
            self.store["outputs"] = outputs
            return None
        if self.whole:
            return _with(outputs, made) if made else None
        if "final" in self.needs and self.head is None:
            return None
        return {"captured": dict(self.store), "logits": _logits(outputs) if "final" in self.needs else None}


def parse(key: str) -> tuple[str | None, str, int]:
    """
    >>> parse("hidden.3"), parse("encoder.attention.1")
    ((None, 'hidden', 3), ('encoder', 'attention', 1))
    """
    *stack, kind, layer = key.split(".") if "." in key else (key, "")
    if kind not in ("hidden", "attention") or not layer.isdecimal():
        raise ValueError(f"need {key!r}: expected loss, logits, final, outputs, hidden.<i> or attention.<i>")
    return (".".join(stack) or None), kind, int(layer)


def deepest(needs: frozenset[str]) -> tuple[str | None, int]:
    """The last block that any need looks at; a decoder comes after its encoder."""
    places = [(stack == "decoder", layer, stack) for stack, _, layer in map(parse, needs)]
    _, layer, stack = max(places, key=lambda place: place[:2])
    return stack, layer


def _logits(outputs: Any) -> torch.Tensor | None:
    return outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]


def _with(outputs: Any, made: Mapping[str, Any]) -> Any:
    if isinstance(outputs, dict):
        outputs["made_for_losses"] = dict(made)
        return outputs
    return (*outputs, dict(made))
