"""Tell how many bytes of text a token stands for, where its tokenizer says so exactly.

A loss per token cannot be compared between tokenizers; bits per byte can. Two kinds of vocabulary spell out their
bytes. Byte-level ones (GPT-2, Llama 3, Qwen) write each byte as one character. SentencePiece ones that fall back to
bytes (Llama 2, Gemma) write a space as "▁" and a byte as ``<0x0A>``. The tokens of others do not give the text back:
WordPiece drops spaces, and T5's pieces have no newline.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\u2581"


def bytes_per_token(tokenizer: Any, size: int) -> torch.Tensor | None:
    """Return bytes by token number, 0 for special tokens; None where the tokenizer does not spell them out."""
    kind = _kind(tokenizer)
    if kind is None:
        return None
    special = set(tokenizer.all_special_ids)
    added = {int(number): str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    table = torch.zeros(max(size, len(tokenizer)), dtype=torch.int64)
    for token, number in tokenizer.get_vocab().items():
        if number not in special:
            table[number] = len(added[number].encode()) if number in added else _length(token, kind)
    return table


def _length(token: str, kind: str) -> int:
    """Count the bytes of one token.

    >>> _length("Ġthe", "bytes"), _length("▁the", "pieces"), _length("<0x0A>", "pieces"), _length("é", "pieces")
    (4, 4, 1, 2)
    """
    if kind == "bytes":
        return len(token)
    return 1 if _BYTE.fullmatch(token) else len(token.replace(_SPACE, " ").encode())


def _kind(tokenizer: Any) -> str | None:
    """Read from the decoder, which turns tokens into text, how the vocabulary is written."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return None
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return "bytes"
    return "pieces" if "ByteFallback" in kinds else None
