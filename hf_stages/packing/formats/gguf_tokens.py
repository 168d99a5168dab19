"""Write a tokenizer to GGUF's metadata, for the tokenizers of llama.cpp: SentencePiece, byte-level BPE, WordPiece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    _ENDINGS + _WORDS: "llama-bpe",
    _ENDINGS + _WORDS.replace("{1,3}", ""): "qwen2",
}
"""Patterns that tokenizer.json splits text by, with llama.cpp's names for them."""
_UNUSED_MERGE = "\u2400\u2400 \u2400"
"""A merge of symbols that byte-level text never has: llama.cpp expects at least one merge."""
_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "mask")


def write_tokens(writer: Any, folder: Path | None, size: int, arch: str, pre: str | None) -> list[str]:
    """Write the tokenizer in ``folder``, for an embedding of ``size`` tokens; return notes about it."""
    found = None if folder is None else _tokenizer(folder)
    if found is None:
        writer.add_tokenizer_model("no_vocab")
        missing = [] if folder is None else ["the stage folder has no tokenizer: llama.cpp takes token ids alone"]
        return missing
    state = json.loads(found.backend_tokenizer.to_str())
    kind = _kind(state)
    if (kind == "bert") != (arch == "bert"):
        raise ValueError(
            f"Gguf: tokenizer: expected {'WordPiece' if arch == 'bert' else 'SentencePiece or byte-level BPE'} for "
            f"{arch}, got {state['model']['type']}; tokenizer=False leaves it out"
        )
    tokens, types = _token_table(state, size)
    writer.add_tokenizer_model(kind)
    notes = _BY_KIND[kind](writer, state, tokens, types, pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_specials(writer, found, kind)
    return notes


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)
    if not getattr(found, "is_fast", False):
        raise ValueError(
            f"Gguf: tokenizer: expected one with a tokenizer.json, got a {type(found).__name__}; tokenizer=False "
            "leaves it out"
        )
    return found


def _kind(state: Mapping[str, Any]) -> str:
    model = state["model"]
    if model["type"] == "WordPiece":
        return "bert"
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return "llama"
    if model["type"] == "BPE" and any(part["type"] == "ByteLevel" for part in _parts(state, "pre_tokenizer")):
        return "gpt2"
    raise ValueError(
        "Gguf: tokenizer: expected SentencePiece's BPE (with bytes to fall back on), byte-level BPE or WordPiece, got "
        f"{model['type']}; tokenizer=False leaves it out, for a model that is given token ids"
    )


def _parts(state: Mapping[str, Any], key: str) -> list[Any]:
    """List the parts of a normalizer or pre_tokenizer."""
    part = state.get(key)
    if part is None:
        return []
    return list(part.get("normalizers") or part.get("pretokenizers") or [part])


def _token_table(state: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    names: dict[int, str] = {i: token for token, i in state["model"]["vocab"].items()}
    types = dict.fromkeys(names, _NORMAL)
    for added in state["added_tokens"]:
        names[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER
    if names and max(names) >= size:
        raise ValueError(f"Gguf: tokenizer: expected ids below {size}, as the model's table has them, got {max(names)}")
    return [names.get(i, f"[PAD{i}]") for i in range(size)], [types.get(i, _UNUSED) for i in range(size)]


def _sentencepiece(writer: Any, state: Mapping[str, Any], tokens: list[str], types: list[int], pre: Any) -> list[str]:
    model = state["model"]
    merged = ["".join(merge) for merge in _merges(model)]
    ranks: dict[str, int] = {}
    for rank, token in enumerate(merged):
        ranks.setdefault(token, rank)
    known = set(model["vocab"])
    for i, token in enumerate(tokens):
        if token == model.get("unk_token"):
            types[i] = _UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token in known:
            types[i] = _BYTE
        elif types[i] == _USER:
            tokens[i] = token.replace("\u2581", " ")
    # llama.cpp merges into the token with the highest score, so scores follow the order of merges.
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(ranks.get(token, len(merged))) if len(token) > 1 else 0.0 for token in tokens])
    prefix = any(part["type"] == "Prepend" for part in _parts(state, "normalizer")) or any(
        part["type"] == "Metaspace" and part.get("prepend_scheme") != "never" for part in _parts(state, "pre_tokenizer")
    )
    writer.add_add_space_prefix(prefix)
    notes = []
    odd = {part["type"] for part in _parts(state, "normalizer")} - {"Prepend", "Replace"}
    if odd:
        notes.append(f"llama.cpp does not normalize text as {', '.join(sorted(odd))} does")
    merged_twice = sum(a != b for a, b in pairwise(merged)) + 1 > len(ranks)
    never_merged = any(
        len(token) > 1 and kind == _NORMAL and token not in ranks for token, kind in zip(tokens, types, strict=True)
    )
    if merged and (merged_twice or never_merged):
        notes.append("the merges are not those of a SentencePiece vocabulary: llama.cpp may cut some words otherwise")
    return notes


def _byte_level(
    writer: Any, state: Mapping[str, Any], tokens: list[str], types: list[int], pre: str | None
) -> list[str]:
    merges = [" ".join(merge) for merge in _merges(state["model"])]
    name = pre or _pretokenizer(state, bool(merges))
    writer.add_tokenizer_pre(name)
    writer.add_token_merges(merges or [_UNUSED_MERGE])
    notes = []
    if any(part.get("add_prefix_space") for part in _parts(state, "pre_tokenizer")):
        notes.append("this tokenizer puts a space before the text, and llama.cpp does not: begin prompts with one")
    if _parts(state, "normalizer"):
        kinds = ", ".join(part["type"] for part in _parts(state, "normalizer"))
        notes.append(f"llama.cpp does not normalize text as {kinds} does")
    return notes


def _pretokenizer(state: Mapping[str, Any], merges: bool) -> str:
    parts = _parts(state, "pre_tokenizer")
    kinds = [part["type"] for part in parts]
    if not merges:
        return "gpt-2"  # one token per byte, however text is split
    cuts = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and cuts:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and cuts:
        return "smollm"
    pattern = parts[0].get("pattern", {}).get("Regex")
    if kinds == ["Split", "ByteLevel"] and not cuts and pattern in SPLITS:
        return SPLITS[pattern]
    raise ValueError(
        f"Gguf: pre: expected to know how the tokenizer cuts text, got {', '.join(kinds)} with patterns of its own; "
        "name llama.cpp's word for it (pre='llama-bpe'), or leave the tokenizer out (tokenizer=False)"
    )


def _word_piece(writer: Any, state: Mapping[str, Any], tokens: list[str], types: list[int], pre: Any) -> list[str]:
    prefix = state["model"].get("continuing_subword_prefix", "##")
    for i, token in enumerate(tokens):
        if types[i] != _NORMAL or (token.startswith("[") and token.endswith("]")):
            continue
        # llama.cpp marks the beginning of a word, WordPiece what continues it.
        tokens[i] = token[len(prefix) :] if token.startswith(prefix) else "\u2581" + token
    normal: Mapping[str, Any] = next(
        (part for part in _parts(state, "normalizer") if part["type"] == "BertNormalizer"), {}
    )
    small = bool(normal.get("lowercase", True))
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", small)
    accents = normal.get("strip_accents")
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", small if accents is None else accents)
    return []


def _merges(model: Mapping[str, Any]) -> list[Sequence[str]]:
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]


def _write_specials(writer: Any, tokenizer: Any, kind: str) -> None:
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIALS}
    if kind == "bert":
        ids["bos"] = ids["bos"] if ids["bos"] is not None else tokenizer.cls_token_id  # llama.cpp's name for it
    for name, token in ids.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    if kind != "bert":
        made = tokenizer("a")["input_ids"]
        writer.add_add_bos_token(bool(made) and made[0] == ids["bos"] is not None)
        writer.add_add_eos_token(bool(made) and made[-1] == ids["eos"] is not None)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


_BY_KIND: dict[str, Callable[[Any, Mapping[str, Any], list[str], list[int], Any], list[str]]] = {
    "llama": _sentencepiece,
    "gpt2": _byte_level,
    "bert": _word_piece,
}
