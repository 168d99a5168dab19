"""Packed rows compared with padded rows: real tokens per second of processor time, including the time of collating.

The same examples go through the same model: padded to the longest of their micro-batch, packed, and padded after all
were sorted by length, which makes the order less random. By default, lengths are drawn as those of paragraphs are
spread (log-normal). ``--data`` reads a text file with one example in each line.
"""

from __future__ import annotations

import argparse
import gzip
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import xxhash

from benchmarks.common import llama, say, spread
from hf_stages.data import Lengths, Packed

VOCAB = 2048


def texts(path: str | None, count: int, length: int) -> list[dict[str, list[int]]]:
    """Make examples of at most ``length`` tokens; a word of a file is one token."""
    draw = random.Random(0)
    if path is None:
        counts = [max(1, round(draw.lognormvariate(4.2, 0.9))) for _ in range(count)]
        found = [[draw.randrange(VOCAB) for _ in range(n)] for n in counts]
    else:
        opened = gzip.open if path.endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = [line.split() for line in file if line.strip()]
        draw.shuffle(lines)
        found = [[xxhash.xxh32_intdigest(word.encode()) % VOCAB for word in line] for line in lines[:count]]
    return [{"input_ids": ids[:length], "labels": ids[:length]} for ids in found]


def batches(rows: list, size: int) -> Iterator[list]:
    for start in range(0, len(rows) - size + 1, size):
        yield rows[start : start + size]


def seconds(model: torch.nn.Module, collate, rows: list) -> tuple[float, int]:
    """Give the processor time of one forward and backward pass, and its tokens, padding included."""
    began = time.process_time()
    batch = collate(rows)
    model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - began, batch["input_ids"].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a text file, also .gz; default: generated")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    model = llama(options.hidden, options.layers, VOCAB)
    model.config.use_cache = False
    rows = texts(options.data, (options.batches + 1) * options.batch, options.length)
    ordered = sorted(rows[options.batch :], key=lambda row: len(row["input_ids"]))
    padded, packed = Lengths(options.length), Packed(options.length).build(None, model)
    arms = {
        "padded": (padded, rows[options.batch :]),
        "packed": (packed, rows[options.batch :]),
        "sorted": (padded, ordered),
    }
    for collate in (padded, packed):
        seconds(model, collate, rows[: options.batch])
    spent, tokens, ratios = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0), []
    for turn in zip(
        *(batches(rows, options.batch) for _, rows in arms.values()), strict=True
    ):  # in turns, so that noise affects all alike
        took = {}
        for (name, (collate, _)), mine in zip(arms.items(), turn, strict=True):
            took[name], count = seconds(model, collate, mine)
            spent[name] += took[name]
            tokens[name] += count
        ratios.append(took["padded"] / took["packed"])
    real = sum(len(row["input_ids"]) for row in rows[options.batch :])
    lengths = [len(row["input_ids"]) for row in rows]
    say(
        "packing_throughput",
        data=Path(options.data).name if options.data else "generated",
        examples=len(rows) - options.batch,
        tokens_per_example={
            "mean": round(statistics.mean(lengths), 1),
            "median": statistics.median(lengths),
            "max": max(lengths),
        },
        tokens_per_second={name: round(real / took) for name, took in spent.items()},
        real_share={name: round(real / count, 3) for name, count in tokens.items()},
        ratio=round(spent["padded"] / spent["packed"], 3),
        ratio_by_batch={key: round(value, 3) for key, value in spread(ratios).items()},
        ratio_to_sorted=round(spent["sorted"] / spent["packed"], 3),
    )


if __name__ == "__main__":
    main()
