"""Fixed rows that a model is run on, in evaluation mode: what changes in what they leave behind is the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from hf_stages.core.randomness import preserve_random_state
from hf_stages.layers.blocks import blocks_of
from hf_stages.layers.recurrent import RecurrentCore, at_depth, find_recurrence
from hf_stages.models.capture import Capture, evaluating
from hf_stages.models.model_inputs import columns_of, model_inputs
from hf_stages.models.real_tokens import shape_of, tokens_entering
from hf_stages.monitors.base import Monitor, WatchedRun


class FixedRows:
    """A batch of fixed rows. The model runs on them without dropout, draws no random number and keeps no graph.

    Every rank runs the same rows.

    Args:
        run: The run that is watched.
        monitor: The monitor that asks; errors name it.
        rows: How many rows of the dataset.
        dataset: The rows, or a batch of tensors; None: the first rows of the run's own data.
        depth: Cycles of a recurrent core; None: as many as in evaluation.
    """

    def __init__(
        self, run: WatchedRun, monitor: Monitor, *, rows: int, dataset: Any = None, depth: int | None = None
    ) -> None:
        assert run.collated is not None
        self.watched, self.model, self.core, self.depth = run, run.model, find_recurrence(run.model), depth
        try:
            batch, taken = run.collated(dataset, rows), columns_of(self.model)
        except ValueError as error:
            raise run.error(monitor, str(error)) from error
        self.batch = {key: value for key, value in batch.items() if key in taken} or dict(batch)

    def loss(self) -> torch.Tensor | None:
        """Run the whole model on the rows with their labels, and return its own loss; None where it gives none."""
        with self._evaluating():
            outputs = self.model(**self.batch)
        found: Any = outputs.get("loss") if isinstance(outputs, Mapping) else None
        return found.detach().float().mean() if torch.is_tensor(found) else None

    @contextmanager
    def _evaluating(self) -> Iterator[RecurrentCore | None]:
        """Evaluate within the block; afterwards the model is as it was. The block gets the recurrent core, if any."""
        model, core = self.model, self.core
        deep = nullcontext() if core is None else at_depth(model, core.depth if self.depth is None else self.depth)
        try:
            with preserve_random_state(), torch.no_grad(), evaluating(model), self.watched.autocast(), deep:
                yield core
        finally:
            if self.watched.sharded:
                for module in model.modules():  # FSDP leaves the outermost weights whole until a backward pass
                    if hasattr(module, "reshard"):
                        module.reshard()


class Probe(FixedRows):
    """Fixed rows, and what the blocks of one stack make of them. A forward ends at the deepest block looked at.

    Args:
        stack: Which stack of a model of several.
    """

    def __init__(self, run: WatchedRun, monitor: Monitor, *, stack: str | None = None, **rows: Any) -> None:
        super().__init__(run, monitor, **rows)
        self.blocks = len(blocks_of(self.model, stack))
        self.tokens = tokens_entering(self.model, stack)
        real, shape = self.tokens.mask(self.batch), shape_of(self.batch)
        longest = int(real.sum(-1).max()) if real is not None else shape[-1] if shape is not None else 2
        if longest < 2:
            raise run.error(
                monitor,
                f"its probe has {longest} token(s) in its longest row, and two are needed to compare; give probe=, a "
                "dataset with longer rows",
            )

    def look(self, needs: frozenset[str]) -> dict[str, Any]:
        """Run the model on the rows, and return the signals that ``needs`` names (see ``hf_stages.models.signals``).

        Of a recurrent core there is ``core`` too: its states before and after the last cycle.
        """
        model = self.model
        with self._evaluating() as core:
            # A looped block is passed several times, and a sharded model must run to its end.
            capture = Capture(model, needs, defer_head=False, stop=not self.watched.sharded and core is None)
            try:
                with capture.collecting() as captured:
                    capture.run(model, model_inputs(model, self.batch))
            finally:
                capture.remove()
            if core is not None:
                captured["core"] = core.last_states
        return captured

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """Return (rows, tokens): 1 where a state is of a token that is no padding, else 0."""
        return self.tokens.weights(self.batch, states).gt(0).to(torch.float32)


def check_blocks(
    run: WatchedRun, monitor: Monitor, layers: tuple[int, ...], stack: str | None, depth: int | None = None
) -> None:
    """Refuse, by the model's shape, blocks that it does not have, and a depth where it has but one."""
    try:
        count = len(blocks_of(run.model, stack))
    except ValueError as error:
        raise run.error(monitor, str(error)) from error
    unknown = [layer for layer in layers if not 1 <= layer <= count]
    if unknown:
        got = ", ".join(map(str, unknown))
        raise run.error(monitor, f"layers: the model has {count} blocks, counted from 1; got {got}")
    if depth is not None and find_recurrence(run.model) is None:
        raise run.error(monitor, f"depth={depth}: the model has no recurrent core, so it has one depth; leave it out")
