"""Compare staged with joint training on your own text.

The script writes data, a tokenizer and a recipe, then runs ``hf-stages versus`` on it. Without files, it takes prose,
code and tool calls from Python's standard library. Files are text (lines), JSON lines or CSV, gzipped or not. Columns
stand after a colon: ``--code mbpp.jsonl:text,code``. In ``--tools`` the last column is the answer, and only the answer
is learned. Every tenth piece is used for evaluation only. Options that are not listed here go to ``versus``: ``--seeds
0 1 2``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoTokenizer

from _arguments import command_line
from hf_stages.commands.cli import main as cli
from hf_stages.data.sample_text import blocks
from stdlib_tools import bpe_tokenizer, domains

SIZES = {"tiny": (32, 64, 1), "small": (96, 256, 2), "large": (160, 432, 3)}
"""Width, feed-forward width and layers of a new model: 0.08, 0.4 and 1.3M parameters."""
LINES = 50  # so many lines of a text file stay together


def pieces(name: str) -> list[tuple[str, ...]]:
    """Read a file: a tuple of columns for each row of a table, or of one text for each piece of a text file."""
    path, _, columns = name.partition(":")
    kind = {"jsonl": "json", "json": "json", "csv": "csv"}.get(path.removesuffix(".gz").rsplit(".", 1)[-1], "text")
    rows = load_dataset(kind, data_files=path, split="train")
    if kind == "text":
        lines = rows["text"]
        return [("\n".join(lines[i : i + LINES]),) for i in range(0, len(lines), LINES)]
    return [tuple(row[column] for column in columns.split(",")) for row in rows]


def answers(rows: list[tuple[str, ...]], tokenizer, length: int) -> Dataset:
    """Make rows whose last column is learned and whose others are read; a row that is too long loses its beginning."""
    found: dict[str, list] = {"input_ids": [], "labels": []}
    for *read, answer in rows:
        prompt = tokenizer("\n".join(read) + "\n=>\n", add_special_tokens=False)["input_ids"]
        learned = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        prompt = prompt[max(0, len(prompt) + len(learned) - length) :]
        found["input_ids"].append(prompt + learned)
        found["labels"].append([-100] * len(prompt) + learned)
    return Dataset.from_dict(found)


def own_domains(options: argparse.Namespace) -> tuple:
    """Make a tokenizer, and rows of tokens by split and domain, as ``stdlib_tools.domains`` does."""
    named = {"language": options.language, "code": options.code, "tools": options.tools}
    read = {name: [row for file in files for row in pieces(file)] for name, files in named.items() if files}
    split = {
        "train": {name: [row for i, row in enumerate(rows) if i % 10] for name, rows in read.items()},
        "eval": {name: rows[::10] for name, rows in read.items()},
    }
    if options.model:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    else:  # trained on equally much of each domain; a rare one would else be cut into single letters
        shown = [["\n".join(row) for row in rows] for rows in split["train"].values()]
        least = min(sum(map(len, texts)) for texts in shown)
        tokenizer = bpe_tokenizer([text for texts in shown for text in _first(texts, least)], 2048)
    made = {}
    for kind, sets in split.items():
        made[kind] = {
            name: answers(rows, tokenizer, options.length)
            if name == "tools"
            else blocks(Dataset.from_dict({"text": ["\n".join(row) for row in rows]}), tokenizer, options.length)
            for name, rows in sets.items()
        }
    return tokenizer, made


def _first(texts: list[str], characters: int) -> list[str]:
    kept, left = [], characters
    for text in texts:
        kept.append(text[: max(left, 0)])
        left -= len(text)
    return kept


def write_data(options: argparse.Namespace, sets_by_split: dict, names: list[str]) -> None:
    for split, sets in sets_by_split.items():
        for name in names:
            rows, most = sets[name], min(options.evaluate, len(sets[name]))
            if split == "eval":  # spread over all rows, because a table may be sorted
                rows = rows.select([i * len(rows) // most for i in range(most)])
            rows.to_json(options.out / f"{name}{'-eval' if split == 'eval' else ''}.jsonl")


def model_of(options: argparse.Namespace, tokens: int) -> dict:
    """Give a recipe's model: the pretrained one that was named, or a new Llama of the size that was chosen."""
    if options.model:
        if AutoConfig.from_pretrained(options.model).vocab_size < tokens:
            raise ValueError(f"--model {options.model}: its tokenizer has more tokens than its embedding has rows")
        return {"path": str(options.model.resolve())}
    width, inner, layers = SIZES[options.size]
    config = {
        "model_type": "llama", "vocab_size": tokens, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": width // 16, "initializer_range": 0.08,
        "tie_word_embeddings": True, "max_position_embeddings": options.length,
    }  # fmt: skip
    return {"config": config}


def stages_of(options: argparse.Namespace, names: list[str]) -> list[dict]:
    return [
        {
            "name": name,
            "until": f"{max(round(options.steps * share), 1)} steps",
            "train_dataset": name,
            "schedule": {"use": "Fresh", "peak": rate, "warmup": "10 %", "shape": "cosine"},
        }
        for name, share, rate in zip(names, options.shares, options.rates, strict=False)
    ]


def write(options: argparse.Namespace) -> Path:
    """Write data, tokenizer and ``run.yaml`` into ``options.out``."""
    tokenizer, data = own_domains(options) if options.language else domains(2_000_000, 2_000, options.length)[:2]
    names = list(data["train"])[: len(options.shares)]
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(options.out / "tokenizer")
    write_data(options, data, names)
    files = {key: options.out / f"{key}.jsonl" for name in names for key in (name, f"{name}-eval")}
    recipe = {
        "model": model_of(options, len(tokenizer)),
        "tokenizer": "tokenizer",
        "args": {
            "output_dir": str((options.out / "run").resolve()), "per_device_train_batch_size": options.batch,
            "per_device_eval_batch_size": 32, "logging_steps": 10, "optim": "adamw_torch_fused", "report_to": "none",
            "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        },
        "sources": {key: {"path": "json", "data_files": str(file.resolve())} for key, file in files.items()},
        "data_collator": {"use": "Lengths", "length": options.length},
        "compute_metrics": {"use": "Metrics", "names": "accuracy", "shift": True},
        "eval_dataset": {name: f"{name}-eval" for name in names},
        "stages": stages_of(options, names),
    }  # fmt: skip
    path = options.out / "run.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def parse(words=None) -> tuple[argparse.Namespace, list[str]]:
    parser = command_line(__doc__, out="joint-out", steps=500, steps_help="updates of all stages together")
    for name in ("language", "code", "tools"):
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="FILE[:COLUMNS]")
    parser.add_argument("--model", type=Path, help="a pretrained decoder with its tokenizer, instead of a new one")
    parser.add_argument("--size", choices=SIZES, default="small", help="size of a new model")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.93, 0.07], help="share of the updates, by stage")
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-3, 1e-3], help="peak rate of each stage")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--evaluate", type=int, default=96, help="rows of each domain to measure")
    parser.add_argument("--write-only", action="store_true", help="stop before training")
    options, more = parser.parse_known_args(words)
    if bool(options.language) != bool(options.code) or (options.tools and not options.language):
        parser.error("expected --language and --code, and --tools beside them if at all; or none of them")
    shares, most = len(options.shares), 3 if options.tools or not options.language else 2
    if shares != len(options.rates) or not 2 <= shares <= most:
        parser.error(f"expected a share and a rate for each of the stages, got {shares} and {len(options.rates)}")
    return options, more


def main(words=None) -> int:
    # 1. Write data, a tokenizer and a recipe.
    options, more = parse(words)
    path = write(options)

    # 2. Compare the arms.
    print(f"hf-stages versus {path} {' '.join(more)}")
    return 0 if options.write_only else cli(["versus", str(path), *more])


if __name__ == "__main__":
    sys.exit(main())
