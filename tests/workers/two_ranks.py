"""Two ranks on the CPU, started by torchrun: ``two_ranks.py OUT [scenario ...]``. Rank 0 writes ``OUT/results.json``.

Each scenario is a function of its folder that asserts on every rank and may return data for the test to compare.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from tests.workers import fsdp
from tests.workers.scenarios import SCENARIOS


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    gc.freeze()
    fsdp.allow_fsdp_on_cpu()
    PartialState(cpu=True, backend="gloo")
    chosen = sys.argv[2:] or list(SCENARIOS)
    results: dict[str, Any] = {}
    for name in chosen:
        began, problem, data = time.monotonic(), None, None
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
            data = SCENARIOS[name](out / name)
        except Exception:
            problem = traceback.format_exc()
        try:
            problems: list[Any] = [None, None]
            dist.all_gather_object(problems, problem)
        except Exception:  # the other rank is elsewhere
            problems = [problem or traceback.format_exc()]
        results[name] = {"problems": [p for p in problems if p], "data": data, "seconds": time.monotonic() - began}
        if dist.get_rank() == 0:
            (out / "results.json").write_text(json.dumps(results), encoding="utf-8")
            print(
                f"{name}: {'failed' if results[name]['problems'] else 'ok'}, {time.monotonic() - began:.1f} s",
                flush=True,
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
