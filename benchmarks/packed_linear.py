"""A linear layer on packed 1-bit and 2-bit weights with 8-bit activations, compared with nn.Linear in float32.

All sides take turns, so that noise on the machine affects all of them. ``ratio`` compares medians. ``best`` compares
each side's fastest turn, which other programs disturbed least. ``processor`` compares medians of processor time over
all threads. ``int8`` is torch's dynamically quantized linear layer. If a target is missed, the bound of this processor
is printed: the packed bytes over the measured bandwidth of memory, and the products over what its integer units can do
(AVX2 without VNNI: 32 products by two instructions, 3.2 times as many as in float32, as measured on Zen 3).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.common import say
from hf_stages.layers import Activations
from hf_stages.packing.kernels import linear, which

BITS = {"ternary": 2, "binary": 1, "split": 1}
TARGETS = [  # inputs, outputs, rows, at least
    (4096, 4096, 1, {"ternary": 10, "binary": 12, "split": 6}),
    (768, 3072, 1, dict.fromkeys(BITS, 6)),
    (768, 3072, 128, dict.fromkeys(BITS, 2.5)),
    (768, 3072, 4096, dict.fromkeys(BITS, 2.5)),
]


def packed(levels: str, inputs: int, outputs: int) -> Callable[[torch.Tensor], torch.Tensor]:
    lead = (2, outputs) if levels == "split" else (outputs,)
    weight = torch.randint(0, 256, (*lead, -(-inputs * BITS[levels] // 8)), dtype=torch.uint8)
    if levels == "ternary":  # no code 0
        weight |= (~(weight | weight >> 1) & 0x55).to(torch.uint8)
    scale, bias, activations, cache = torch.rand(*lead, 1), torch.randn(outputs), Activations(), {}
    return lambda x: linear(
        x, weight, scale, bias, levels=levels, in_features=inputs, activations=activations, cache=cache
    )


def sides(inputs: int, outputs: int, int8: bool) -> dict[str, Callable]:
    plain = nn.Linear(inputs, outputs)
    found: dict[str, Callable] = {"float32": plain}
    if int8:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["int8"] = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {nn.Linear})
    return found | {levels: packed(levels, inputs, outputs) for levels in BITS}


def turns(inputs: int, outputs: int, rows: int, seconds: float, int8: bool = True) -> dict[str, Any]:
    """Compare each side with float32, by medians and by best turns; give float32's time in microseconds."""
    x, ways = torch.randn(rows, inputs), sides(inputs, outputs, int8)
    took: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(x)
    end, order = time.perf_counter() + seconds, list(ways)
    while time.perf_counter() < end or len(took["float32"]) < 5:
        for name in order:
            used, began = time.process_time(), time.perf_counter()
            ways[name](x)
            took[name].append(time.perf_counter() - began)
            busy[name].append(time.process_time() - used)
        order.reverse()
    median = {name: statistics.median(values) for name, values in took.items()}
    work = {name: statistics.median(values) for name, values in busy.items()}
    least = {name: min(values) for name, values in took.items()}
    found: dict[str, Any] = {"float32_us": round(least["float32"] * 1e6, 1)}
    for name in list(ways)[1:]:
        ratio, best = median["float32"] / median[name], least["float32"] / least[name]
        found[name] = {"ratio": round(ratio, 2), "best": round(best, 2), "best_us": round(least[name] * 1e6, 1)}
        found[name]["processor"] = round(work["float32"] / work[name], 2)
    return found


def bandwidth() -> float:
    """Measure how many bytes a second float32 sums read from memory."""
    block, best = torch.ones(1 << 26), 1.0
    for _ in range(5):
        began = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - began)
    return block.numel() * 4 / best


def peak() -> float:
    """Measure how many products a second the processor makes in a large float32 matrix product."""
    a, best = torch.randn(1024, 1024), 1.0
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 1024**3 / best


def bound(levels: str, inputs: int, outputs: int, rows: int, reads: float, products: float) -> str:
    halves = 2 if levels == "split" else 1
    moved = halves * outputs * inputs * BITS[levels] / 8 / reads * 1e6
    computed = halves * outputs * inputs * rows / (3.2 * products) * 1e6
    return (
        f"bound: {moved:.0f} us of memory, {computed:.0f} us of products (at most 3.2x float32's, {halves} per weight)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each shape")
    parser.add_argument("--sweep", nargs="*", default=["256x256", "768x3072"], help="shapes of the sweep over rows")
    parser.add_argument("--rows", type=int, default=4096, help="the sweep's last")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reads, products = bandwidth(), peak()
    aims, sweep, slower = {}, {}, []
    with torch.inference_mode():
        for inputs, outputs, rows, wanted in TARGETS:
            found = aims[f"{inputs}x{outputs} rows={rows}"] = turns(inputs, outputs, rows, options.seconds)
            print(f"{inputs}x{outputs} rows={rows} {found}", flush=True)
            for levels, least in wanted.items():
                if found[levels]["best"] < least:
                    print(f"  {levels} misses {least}x; {bound(levels, inputs, outputs, rows, reads, products)}")
        for shape in options.sweep:
            inputs, outputs = map(int, shape.split("x"))
            rows = 1
            while rows <= options.rows:
                found = turns(inputs, outputs, rows, options.seconds / 6, int8=False)
                sweep[f"{shape} rows={rows}"] = {levels: found[levels]["best"] for levels in BITS}
                slower += [f"{shape} rows={rows} {levels}" for levels in BITS if found[levels]["best"] < 1]
                print(f"{shape} rows={rows} {found}", flush=True)
                rows *= 2
    say(
        "packed_linear",
        path=which(),
        threads_used=options.threads,
        targets=aims,
        sweep_best=sweep,
        slower_than_float32=slower,
        bandwidth_gb_s=round(reads / 1e9, 1),
        float32_gmac_s=round(products / 1e9, 1),
    )


if __name__ == "__main__":
    main()
