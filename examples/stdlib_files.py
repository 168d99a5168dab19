"""Write the data that ``run.yaml`` names: the standard library's prose and source as JSON lines, and a tokenizer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.stdlib_text import byte_tokenizer, code, prose


def write(folder: Path, limit_bytes: int = 300_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("language", prose), ("code", code)):
        text(limit_bytes).to_json(folder / f"{name}.jsonl")
        text(limit_bytes // 10, split="eval").to_json(folder / f"{name}-eval.jsonl")
    byte_tokenizer().save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).with_name("stdlib"))
    where = parser.parse_args().folder
    write(where)
    print(f"written: {where}")
