"""A staged recipe of two tiny domains, for the commands that compare runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support import tiny


def write(folder: Path, **changes) -> str:
    """Two sources of eight tokens a row, told apart by their tokens; language, then code. Returns the recipe's path."""
    draw = random.Random(0)
    for name, (low, high), rows in (("language", (3, 12), 40), ("code", (30, 36), 24)):
        for kind, count in ((name, rows), (f"{name}-eval", 4)):
            ids = [[draw.randint(low, high) for _ in range(8)] for _ in range(count)]
            lines = [json.dumps({"input_ids": row, "labels": row}) for row in ids]
            (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    content = {
        "model": {"config": {"model_type": "llama", **tiny.LLAMA_SIZES}},
        "args": {
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "report_to": "none",
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        },
        "sources": {
            name: {"path": "json", "data_files": str(folder / f"{name}.jsonl")}
            for name in ("language", "code", "language-eval", "code-eval")
        },
        "eval_dataset": {"language": "language-eval", "code": "code-eval"},
        "stages": [
            {
                "name": "language",
                "until": "6 steps",
                "train_dataset": "language",
                "schedule": {"use": "Fresh", "warmup": "2 steps"},
            },
            {"name": "code", "until": "4 steps", "train_dataset": "code", "schedule": {"use": "Rewarm", "to": 5e-3}},
        ],
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps({**content, **changes}))  # JSON is YAML
    return str(path)
