"""Fixed rows that a model is run on, in evaluation mode: what changes in what they leave behind is the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hf_stages.core.randomness import preserve_random_state
from hf_stages.layers.blocks import blocks_of
from hf_stages.layers.recurrent import RecurrentCore, at_depth, find_recurrence
from hf_stages.models.capture import Capture, evaluating
from hf_stages.models.model_inputs import columns_of, model_inputs
from hf_stages.models.real_tokens import tokens_entering
from hf_stages.monitors.base import Monitor, WatchedRun


class Probe:
    """A batch of fixed rows, and what a model's blocks make of it.

    The model runs without dropout, draws no random number and keeps no graph; a forward ends at the deepest block that
    is looked at. Every rank runs the same rows.

    Args:
        run: The run that is watched.
        monitor: The monitor that asks; errors name it.
        rows: How many rows of the dataset.
        dataset: The rows, or a batch of tensors; None: the first rows of the run's own data.
        stack: Which stack of a model of several.
        depth: Cycles of a recurrent core; None: as many as in evaluation.
    """

    def __init__(
        self,
        run: WatchedRun,
        monitor: Monitor,
        *,
        rows: int,
        dataset: Any = None,
        stack: str | None = None,
        depth: int | None = None,
    ) -> None:
        assert run.collated is not None
        self.watched, self.model, self.core = run, run.model, find_recurrence(run.model)
        if depth is not None and self.core is None:
            raise run.error(
                monitor, f"depth={depth}: the model has no recurrent core, so it has one depth; leave it out"
            )
        self.depth = depth
        try:
            self.blocks = len(blocks_of(self.model, stack))
            batch, taken = run.collated(dataset, rows), columns_of(self.model)
            self.batch = {key: value for key, value in batch.items() if key in taken} or dict(batch)
            self.tokens = tokens_entering(self.model, stack)
        except ValueError as error:
            raise run.error(monitor, str(error)) from error
        real = self.tokens.mask(self.batch)
        lengths = real.sum(-1) if real is not None else None
        if lengths is not None and int(lengths.max()) < 2:
            raise run.error(
                monitor,
                f"its probe has {int(lengths.max())} token(s) in its longest row, and two are needed to compare; give "
                "probe=, a dataset with longer rows",
            )

    def check_layers(self, monitor: Monitor, layers: tuple[int, ...]) -> None:
        """Refuse numbers of blocks that the model does not have."""
        unknown = [layer for layer in layers if not 1 <= layer <= self.blocks]
        if unknown:
            raise self.watched.error(
                monitor,
                f"layers: the model has {self.blocks} blocks, counted from 1; got {', '.join(map(str, unknown))}",
            )

    def look(self, needs: frozenset[str]) -> dict[str, Any]:
        """Run the model on the rows, and return the signals that ``needs`` names (see ``hf_stages.models.signals``).

        Of a recurrent core there is ``core`` too: its states before and after the last cycle.
        """
        model, run = self.model, self.watched
        with preserve_random_state(), torch.no_grad(), evaluating(model), run.autocast(), self._at_depth() as core:
            # A looped block is passed several times, and a sharded model must run to its end.
            capture = Capture(model, needs, defer_head=False, stop=not run.sharded and core is None)
            try:
                with capture.collecting() as captured:
                    capture.run(model, model_inputs(model, self.batch))
            finally:
                capture.remove()
            if core is not None:
                captured["core"] = core.last_states
        return captured

    def loss(self) -> torch.Tensor | None:
        """Run the whole model on the rows with their labels, and return its own loss; None where it gives none."""
        model, run = self.model, self.watched
        with preserve_random_state(), torch.no_grad(), evaluating(model), run.autocast(), self._at_depth():
            outputs = model(**self.batch)
        found: Any = outputs.get("loss") if isinstance(outputs, Mapping) else None
        return found.detach().float().mean() if torch.is_tensor(found) else None

    def _at_depth(self) -> AbstractContextManager[RecurrentCore | None]:
        if self.core is None:
            return nullcontext()
        return at_depth(self.model, self.core.depth if self.depth is None else self.depth)

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """Return (rows, tokens): 1 where a state is of a token that is no padding, else 0."""
        return self.tokens.weights(self.batch, states).gt(0).to(torch.float32)
