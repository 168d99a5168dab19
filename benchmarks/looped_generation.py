"""Generation with a recurrent core, against the sum of its parts measured apart, and memory against depth.

A token costs what embedding and head cost, the prelude, as many cycles as the depth, and the coda. Each part runs by
itself, with a cache of its own that grows as the whole model's does. For each token all parts and the whole model at
all depths take turns, so that a part finds the processor's caches as it does within the model: its weights are cold,
except those of the core in a second cycle. Times are processor time over all threads, which other programs disturb
least.

``ratio`` is the whole model's median time for a token over the sum of the parts'; the target is at most 1.05. ``cache``
counts bytes of keys and values for a token, ``kept`` what one training forward keeps for backward: it stays as it is
beyond the last ``backprop`` cycles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.common import llama, say
from hf_stages.layers import at_depth, find_recurrence
from hf_stages.transforms import MakeRecurrent

TARGET = 1.05
PROMPT = 64


def looped(hidden: int, backprop: int) -> Any:
    return MakeRecurrent(1, 2, 1, mean_depth=8, backprop=backprop)(llama(hidden=hidden)).eval()


class Part:
    """Some blocks of a model, what is left without any, or all of it: runs one token at a time.

    Args:
        run: Runs it on the next token's input, given the cache.
        cache: What it goes on with, filled with the prompt.
    """

    def __init__(self, run: Callable[[Any], Any], cache: Any) -> None:
        self.run, self.cache = run, cache

    def seconds(self) -> float:
        began = time.process_time()
        self.run(self.cache)
        return time.process_time() - began


def whole(model: Any, prompt: torch.Tensor, depth: int) -> Part:
    def run(cache: Any) -> None:
        with at_depth(model, depth):
            model(prompt[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)

    with at_depth(model, depth):
        return Part(run, model(prompt, use_cache=True).past_key_values)


def blocks(model: Any, layers: Any) -> Part:
    """Run blocks of the model by themselves, on a state of the right shape."""
    core, width = find_recurrence(model), model.config.hidden_size

    def run(cache: Any, tokens: int = 1) -> None:
        hidden = torch.zeros(1, tokens, width)
        if layers is core.layers:
            hidden = core.adapter(torch.cat((hidden, hidden), dim=-1))
        for layer in layers:
            hidden = layer(hidden, position_embeddings=rotary(hidden), past_key_values=cache, use_cache=True)

    def rotary(hidden: torch.Tensor) -> Any:  # a cosine and a sine for each token: of which place costs the same
        return turned[0][:, : hidden.shape[1]], turned[1][:, : hidden.shape[1]]

    turned = model.model.rotary_emb(torch.zeros(1), torch.arange(PROMPT)[None])
    cache = DynamicCache(config=model.config)
    run(cache, PROMPT)
    return Part(run, cache)


def without_blocks(model: Any, prompt: torch.Tensor) -> Part:
    """Run the model with no block at all: embedding, mask, positions, last norm, head."""
    kept, none = model.model.layers, torch.nn.ModuleList()

    def run(cache: Any) -> None:
        model.model.layers = none
        model(prompt[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        model.model.layers = kept

    return Part(run, DynamicCache(config=model.config))


def ratios(hidden: int, depths: list[int], count: int, turns: int) -> dict[int, dict[str, float]]:
    """Compare, at each depth, the whole model's time for a token with the sum of its parts' times."""
    model = looped(hidden, backprop=8)
    layers, core = model.model.layers, find_recurrence(model)
    prompt = torch.randint(0, 2048, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    took: dict[Any, list[float]] = {}
    with torch.inference_mode():
        for _ in range(turns):
            parts: dict[Any, Part] = {
                "rest": without_blocks(model, prompt),
                "prelude": blocks(model, layers[:1]),
                "cycle": blocks(model, core.layers),
                "next cycle": blocks(model, core.layers),
                "coda": blocks(model, layers[2:]),
            }
            parts |= {depth: whole(model, prompt, depth) for depth in depths}
            for _ in range(count):
                for name, part in parts.items():
                    took.setdefault(name, []).append(part.seconds())
    medians = {key: statistics.median(values) for key, values in took.items()}
    once = sum(medians[name] for name in ("rest", "prelude", "cycle", "coda"))
    found = {}
    for depth in depths:
        apart = once + (depth - 1) * medians["next cycle"]
        found[depth] = {"ms": 1e3 * medians[depth], "apart_ms": 1e3 * apart, "ratio": medians[depth] / apart}
    return found


def cache_bytes(hidden: int, depths: list[int]) -> dict[int, int]:
    """Count bytes of keys and values that a token takes at each depth."""
    model, found = looped(hidden, backprop=8), {}
    prompt = torch.zeros((1, PROMPT), dtype=torch.long)
    for depth in depths:
        with at_depth(model, depth), torch.inference_mode():
            cache = model(prompt, use_cache=True).past_key_values
        found[depth] = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // PROMPT
    return found


def kept_bytes(hidden: int, depths: list[int], backprop: int = 4) -> dict[int, int]:
    """Count bytes that a training forward keeps for backward at each depth; a tensor kept twice counts once."""
    model, found = looped(hidden, backprop).train(), {}
    ids = torch.zeros((1, PROMPT), dtype=torch.long)
    for depth in depths:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with at_depth(model, depth), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(ids, labels=ids).loss
        found[depth] = sum(kept.values())
        del loss
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4, 16, 32])
    given = parser.parse_args()
    found = ratios(given.hidden, given.depths, given.tokens, given.turns)
    kept = kept_bytes(given.hidden, [1, 2, 4, 8, 16, 32])
    worst = max(row["ratio"] for row in found.values())
    say(
        "looped_generation",
        hidden=given.hidden,
        by_depth=found,
        ratio=worst,
        met=worst <= TARGET,
        cache=cache_bytes(given.hidden, given.depths),
        kept=kept,
        flat=kept[4] == kept[8] == kept[16] == kept[32],
    )


if __name__ == "__main__":
    main()
