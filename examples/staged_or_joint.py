"""Staged against joint on your own text: writes data, a tokenizer and a recipe, then runs ``hf-stages versus`` on it.

Without files, it takes the standard library's prose, code and tool calls. Files are text (lines), JSON lines or CSV, gzipped or
not; columns stand after a colon: ``--code mbpp.jsonl:text,code``. Of ``--tools`` the last column is the answer, and only it is
learned. Every tenth piece is for evaluation alone. Options that are not named here go to ``versus``: ``--seeds 0 1 2``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoTokenizer

from examples.stdlib_tools import bpe_tokenizer, domains
from hf_stages.commands.cli import main as cli
from hf_stages.data.sample_text import blocks

SIZES = {"tiny": (32, 64, 1), "small": (96, 256, 2), "large": (160, 432, 3)}
"""Width, feed-forward and layers: 0.08, 0.4 and 1.3M parameters."""
LINES = 50  # of a text file that stay together


def pieces(name: str) -> list[tuple[str, ...]]:
    """A tuple for each row of a table, of one text for each piece of a text file."""
    path, _, columns = name.partition(":")
    kind = {"jsonl": "json", "json": "json", "csv": "csv"}.get(path.removesuffix(".gz").rsplit(".", 1)[-1], "text")
    rows = load_dataset(kind, data_files=path, split="train")
    if kind == "text":
        lines = rows["text"]
        return [("\n".join(lines[i : i + LINES]),) for i in range(0, len(lines), LINES)]
    return [tuple(row[column] for column in columns.split(",")) for row in rows]


def answers(rows: list[tuple[str, ...]], tokenizer, length: int) -> Dataset:
    """The last column is learned, the others are read; a row that would be longer than ``length`` loses its beginning."""
    found: dict[str, list] = {"input_ids": [], "labels": []}
    for *read, answer in rows:
        prompt = tokenizer("\n".join(read) + "\n=>\n", add_special_tokens=False)["input_ids"]
        learned = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        prompt = prompt[max(0, len(prompt) + len(learned) - length) :]
        found["input_ids"].append(prompt + learned)
        found["labels"].append([-100] * len(prompt) + learned)
    return Dataset.from_dict(found)


def own_domains(a: argparse.Namespace) -> tuple:
    """As ``stdlib_tools.domains``: a tokenizer, and rows of tokens by split and domain."""
    given = {"language": a.language, "code": a.code, "tools": a.tools}
    read = {name: [row for file in files for row in pieces(file)] for name, files in given.items() if files}
    split = {
        "train": {name: [row for i, row in enumerate(rows) if i % 10] for name, rows in read.items()},
        "eval": {name: rows[::10] for name, rows in read.items()},
    }
    if a.model:
        tokenizer = AutoTokenizer.from_pretrained(a.model)
    else:  # as much of each, so that none is all pieces
        shown = [["\n".join(row) for row in rows] for rows in split["train"].values()]
        least = min(sum(map(len, texts)) for texts in shown)
        tokenizer = bpe_tokenizer([text for texts in shown for text in _first(texts, least)], 2048)
    made = {}
    for kind, sets in split.items():
        made[kind] = {
            name: answers(rows, tokenizer, a.length)
            if name == "tools"
            else blocks(Dataset.from_dict({"text": ["\n".join(row) for row in rows]}), tokenizer, a.length)
            for name, rows in sets.items()
        }
    return tokenizer, made


def _first(texts: list[str], characters: int) -> list[str]:
    kept, left = [], characters
    for text in texts:
        kept.append(text[: max(left, 0)])
        left -= len(text)
    return kept


def write(a: argparse.Namespace) -> Path:
    """Data, tokenizer and ``run.yaml`` into ``a.out``."""
    tokenizer, data = own_domains(a) if a.language else domains(2_000_000, 2_000, a.length)[:2]
    shares = dict(zip(data["train"], a.shares, strict=False))
    a.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(a.out / "tokenizer")
    for kind, sets in data.items():
        for name in shares:
            rows, most = sets[name], min(a.evaluate, len(sets[name]))
            if kind == "eval":  # spread over all: a table may be sorted
                rows = rows.select([i * len(rows) // most for i in range(most)])
            rows.to_json(a.out / f"{name}{'-eval' if kind == 'eval' else ''}.jsonl")
    width, inner, layers = SIZES[a.size]
    config = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": width // 16, "initializer_range": 0.08, "tie_word_embeddings": True, "max_position_embeddings": a.length,
    }  # fmt: skip
    stages = [
        {
            "name": name, "until": f"{max(round(a.steps * share), 1)} steps", "train_dataset": name,
            "schedule": {"use": "Fresh", "peak": rate, "warmup": "10 %", "shape": "cosine"},
        }
        for (name, share), rate in zip(shares.items(), a.rates, strict=False)
    ]  # fmt: skip
    if a.model and AutoConfig.from_pretrained(a.model).vocab_size < len(tokenizer):
        raise ValueError(f"--model {a.model}: its tokenizer has more tokens than its embedding has rows")
    recipe = {
        "model": {"path": str(a.model.resolve())} if a.model else {"config": config},
        "tokenizer": "tokenizer",
        "args": {
            "output_dir": str((a.out / "run").resolve()), "per_device_train_batch_size": a.batch, "per_device_eval_batch_size": 32,
            "logging_steps": 10, "optim": "adamw_torch_fused", "report_to": "none", "use_cpu": True, "save_strategy": "no",
            "disable_tqdm": True, "dataloader_pin_memory": False,
        },
        "sources": {
            key: {"path": "json", "data_files": str((a.out / f"{key}.jsonl").resolve())}
            for name in shares for key in (name, f"{name}-eval")
        },
        "data_collator": {"use": "Lengths", "length": a.length},
        "compute_metrics": {"use": "Metrics", "names": "accuracy", "shift": True},
        "eval_dataset": {name: f"{name}-eval" for name in shares},
        "stages": stages,
    }  # fmt: skip
    path = a.out / "run.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def main(words=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("joint-out"))
    for name in ("language", "code", "tools"):
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="FILE[:COLUMNS]")
    parser.add_argument("--model", type=Path, help="a pretrained decoder with its tokenizer, in the place of a new one")
    parser.add_argument("--size", choices=SIZES, default="small", help="of a new one")
    parser.add_argument("--steps", type=int, default=500, help="updates of all stages")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.93, 0.07], help="of the updates, stage by stage")
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-3, 1e-3], help="peak of each stage")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--evaluate", type=int, default=96, help="rows of each domain to measure")
    parser.add_argument("--write-only", action="store_true", help="stop before training")
    a, more = parser.parse_known_args(words)
    if bool(a.language) != bool(a.code) or (a.tools and not a.language):
        parser.error("expected --language and --code, and --tools beside them if at all; or none of them")
    if len(a.shares) != len(a.rates) or len(a.shares) < 2 or len(a.shares) > (3 if a.tools or not a.language else 2):
        parser.error(f"expected a share and a rate for each of the stages, got {len(a.shares)} and {len(a.rates)}")
    path = write(a)
    print(f"hf-stages versus {path} {' '.join(more)}")
    return 0 if a.write_only else cli(["versus", str(path), *more])


if __name__ == "__main__":
    sys.exit(main())
