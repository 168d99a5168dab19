"""What a cached teacher costs for each update, compared with plain fine-tuning by Trainer and with a live teacher.

Two trainers in two threads take turns, one update each, as in step_overhead. ``serving`` is what the cache itself takes
of an update: keys, lookup and reading. The rest of a ratio is the loss, which costs the same with any teacher.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import threading
import time
from pathlib import Path

from transformers import Trainer

from benchmarks.common import arguments, llama, say, tokens
from benchmarks.step_overhead import WARM, Turns
from hf_stages import Stage, StagedTrainer, Teacher
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss
from hf_stages.teachers.cache_reader import CacheReader

LOSSES = {"hidden": TaskLoss() + HiddenMSE([2, 4]), "logits": TaskLoss() + LogitKL()}
VOCAB = 2048
logging.getLogger("hf_stages").setLevel(logging.ERROR)


def pair(teacher, loss, options: argparse.Namespace, folder: str) -> tuple[float, float]:
    """Give the median ratio of an update with the teacher to a plain one, and the plain one's median seconds."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    turns = Turns(first, second), Turns(second, first)
    data = tokens(options.rows, options.length, VOCAB)
    students = [llama(options.hidden, 2, VOCAB) for _ in range(2)]
    trainers = [
        Trainer(
            students[0], arguments(f"{folder}/a", max_steps=options.steps), train_dataset=data, callbacks=[turns[0]]
        ),
        StagedTrainer(
            students[1],
            arguments(f"{folder}/b"),
            stages=[Stage("one", f"{options.steps} steps", loss=loss)],
            teacher=teacher,
            train_dataset=data,
            callbacks=[turns[1]],
        ),
    ]
    threads = [threading.Thread(target=trainer.train) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plain, mine = (t.seconds[WARM:] for t in turns)
    return statistics.median(m / p for m, p in zip(mine, plain, strict=True)), statistics.median(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--k", type=int, default=64)
    options = parser.parse_args()
    serving: list[float] = []
    serve = CacheReader.__call__

    def timed(self, batch):
        began = time.perf_counter()
        try:
            return serve(self, batch)
        finally:
            serving.append(time.perf_counter() - began)

    CacheReader.__call__ = timed
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = llama(options.hidden, 4, VOCAB)
        given = {"hidden": [2, 4], "k": options.k, "dtype": "bfloat16"}
        cached = Teacher(model).cache(tokens(options.rows, options.length, VOCAB), Path(folder, "cache"), **given)
        for name, loss in LOSSES.items():
            serving.clear()
            ratio, plain = pair(cached, loss, options, f"{folder}/{name}")
            share = statistics.median(serving[WARM:]) / plain
            live, _ = pair(llama(options.hidden, 4, VOCAB), loss, options, f"{folder}/{name}-live")
            results[name] = {"cached": round(ratio, 3), "live": round(live, 3), "serving": round(share, 4)}
            results[name]["step_ms"] = round(1e3 * plain, 1)
        size = cached.store.manifest["bytes"] / cached.store.manifest["tokens"]
    say("cached_teacher", ratio_to_plain=results, bytes_per_token=size, target="cached <= 1.05")


if __name__ == "__main__":
    main()
