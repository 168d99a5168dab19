"""Gives real text that every machine has, for first runs and examples: Python's standard library, as prose and as
code."""

from __future__ import annotations

import ast
import io
import random
import sysconfig
import tokenize
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PACKAGES = "asyncio collections email html http importlib json logging multiprocessing unittest urllib"
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def prose(limit_bytes: int = 1_000_000, seed: int = 0, split: str = "train") -> Dataset:
    """Return docstrings and comments, one row per file, in a column ``text``; ``split`` is ``train`` or ``eval``."""
    return _dataset(_prose_of, limit_bytes, seed, split)


def code(limit_bytes: int = 1_000_000, seed: int = 0, split: str = "train") -> Dataset:
    """Return source code without docstrings and comments, one row per file, in a column ``text``."""
    return _dataset(_code_of, limit_bytes, seed, split)


def docs(limit_bytes: int = 1_000_000, seed: int = 0, split: str = "train") -> Dataset:
    """Return Python's reference as ``pydoc`` has it, a row for each topic, and as much ``prose``."""
    names = sorted(topics)
    random.Random(seed).shuffle(names)
    rows, left = [], limit_bytes // 2
    for name in (name for i, name in enumerate(names) if (i % 10 == 0) == (split == "eval")):
        text = topics[name].encode()[: max(left, 0)].decode(errors="ignore")
        left -= len(text.encode())
        rows += [text] if text else []
    more = prose(limit_bytes - sum(len(text.encode()) for text in rows), seed, split)
    return Dataset.from_dict({"text": [*rows, *more["text"]]})


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and two special tokens: nothing to train, nothing to download."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def blocks(dataset: Dataset, tokenizer: PreTrainedTokenizerFast, length: int) -> Dataset:
    """Join all texts, each ended by the end token, and cut rows of ``length`` tokens; the rest is dropped."""
    ids: list[int] = []
    for tokens in tokenizer(list(dataset["text"]))["input_ids"]:
        ids += [*tokens, tokenizer.eos_token_id]
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def _dataset(extract, limit_bytes: int, seed: int, split: str) -> Dataset:
    if split not in ("train", "eval"):
        raise ValueError(f"split: expected 'train' or 'eval', got {split!r}")
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for place in ("", *PACKAGES.split()) for path in sorted((folder / place).glob("*.py"))]
    random.Random(seed).shuffle(files)
    texts, left = [], limit_bytes
    for i, path in enumerate(files):
        # Every tenth file is for evaluation alone, in prose and code alike: what is measured was never trained on.
        if left > 0 and (i % 10 == 0) == (split == "eval"):
            text = extract(path.read_text(encoding="utf-8")).encode()[:left].decode(errors="ignore")
            left -= len(text.encode())
            texts += [text] if text else []
    return Dataset.from_dict({"text": texts})


def _prose_of(source: str) -> str:
    docs = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join(filter(None, [*docs, *comments]))


def _code_of(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(tree)
