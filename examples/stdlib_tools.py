"""Make requests, and the JSON calls that answer them, from the signatures of the standard library's own functions.

``language_code_tools.py`` and ``staged_or_joint.py`` train on them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import random
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_stages import ToolCallsOnly
from hf_stages.data.sample_text import blocks, code, docs

MODULES = """
argparse ast base64 bisect calendar codecs collections colorsys configparser contextlib copy csv dataclasses datetime
difflib dis email.utils enum filecmp fnmatch fractions functools getopt gettext glob gzip hashlib heapq hmac html
http.client importlib.util inspect io ipaddress itertools json keyword linecache locale logging mailbox mimetypes
operator os pathlib pickle pickletools pkgutil platform plistlib posixpath pprint queue quopri random re reprlib sched
secrets selectors shlex shutil signal smtplib socket statistics string struct subprocess symtable sysconfig tarfile
tempfile textwrap threading timeit tokenize traceback types typing unittest.mock urllib.parse uuid warnings wave
weakref xml.dom.minidom zipfile
"""
WORDS = [
    "notes", "report", "main", "table", "image", "config", "backup", "first", "second", "left", "right", "red", "green",
    "blue",
]  # fmt: skip
# The prompt ends in a newline. A space would become one token with the brace after it, and then not be learned.
TEMPLATE = (
    "{% for tool in tools or [] %}"
    "{{ tool.function.name ~ '(' ~ (tool.function.parameters.properties | join(', ')) ~ ')\n' }}"
    "{% endfor %}{% for message in messages %}"
    "{% if message.tool_calls %}{{ '=>\n' ~ (message.tool_calls[0].function | tojson) ~ eos_token }}"
    "{% else %}{{ message.content ~ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '=>\n' }}{% endif %}"
)


def domains(size: int, calls: int, block: int) -> tuple[PreTrainedTokenizerFast, dict, dict]:
    """Make a tokenizer, the rows of all three domains by split, and pairs of right and wrong calls by split.

    The tokenizer is trained on ``size`` bytes each of language and code.
    """
    amounts = {"train": (size, calls), "eval": (size // 25, min(calls // 4, 50))}
    texts = {s: {"language": docs(n, split=s), "code": code(n, split=s)} for s, (n, _) in amounts.items()}
    rows = {s: conversations(n, split=s) for s, (_, n) in amounts.items()}
    tokenizer = bpe_tokenizer([text for source in texts["train"].values() for text in source["text"]])
    data = {
        s: {name: blocks(text, tokenizer, block) for name, text in texts[s].items()}
        | {"tools": as_tokens(rows[s], tokenizer)}
        for s in amounts
    }
    return tokenizer, data, {s: as_pairs(rows[s]) for s in amounts}


def signatures(split: str = "train") -> dict[str, inspect.Signature]:
    """Find public functions and classes that take all arguments by name and need at most three of them.

    Every tenth is used for evaluation only.
    """
    found = {}
    for module in MODULES.split():
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            if name.startswith("_") or not callable(value) or getattr(value, "__module__", None) != module:
                continue
            try:
                signature = inspect.signature(value)
            except (TypeError, ValueError):  # some that are written in C have none
                continue
            named = {parameter.kind in (1, 3) for parameter in signature.parameters.values()}
            if named == {True} and len(_required(signature)) <= 3 and len(str(list(signature.parameters))) < 100:
                found[f"{module}.{name}"] = signature
    names = sorted(found)
    random.Random(0).shuffle(names)
    return {name: found[name] for i, name in enumerate(names) if (i % 10 == 0) == (split == "eval")}


def conversations(count: int, seed: int = 0, split: str = "train") -> list[dict[str, Any]]:
    """Make requests that name a function and arguments, each with two tools, the right call and a wrong one."""
    rng, known = random.Random(f"{seed} {split}"), signatures(split)
    rows = []
    for _ in range(count):
        name, other = rng.sample(sorted(known), 2)
        arguments = _arguments(known[name], rng)
        # Quoted as in the call. With a space before them, the same words would be other tokens, harder to copy.
        wanted = ", ".join(f'"{key}" set to {json.dumps(value)}' for key, value in arguments.items())
        rows.append(
            {
                "tools": [_schema(tool, known[tool]) for tool in sorted((name, other))],
                "prompt": [{"role": "user", "content": f"{name.rpartition('.')[2]} with {wanted}"}],
                "chosen": [_call(name, arguments)],
                "rejected": [_call(name, _spoiled(arguments, rng))],
            }
        )
    return rows


def as_tokens(rows: list[dict], tokenizer: Any) -> Dataset:
    """Render conversations as tokens, so that they mix with blocks of text. Only the call has labels."""
    collator = ToolCallsOnly(tokenizer=tokenizer)
    batches = [collator([{"messages": row["prompt"] + row["chosen"], "tools": row["tools"]}]) for row in rows]
    return Dataset.from_dict({key: [batch[key][0].tolist() for batch in batches] for key in ("input_ids", "labels")})


def as_pairs(rows: list[dict]) -> Dataset:
    """Give rows for ``Preferences`` as JSON text: in a table of records, every call would get the arguments of all."""
    return Dataset.from_list([{key: json.dumps(value) for key, value in row.items()} for row in rows])


def bpe_tokenizer(texts: list[str], size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, with which bits per byte are exact. It has the chat template of this module."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )


def read_call(text: str) -> tuple[str, dict] | None:
    """Read the function and the arguments of a call; None where the text is no call."""
    try:
        call = json.loads(text)
        return (call["name"], call["arguments"]) if isinstance(call["arguments"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def matches(said: list[str], right: list[str]) -> dict[str, float]:
    """Count answers: the share that are calls, that name the right function, and that are exactly right."""
    calls = [(read_call(one), read_call(other)) for one, other in zip(said, right, strict=True)]
    return {
        "parsed": float(np.mean([one is not None for one, _ in calls])),
        "function": float(np.mean([one is not None and one[0] == other[0] for one, other in calls])),
        "arguments": float(np.mean([one is not None and one == other for one, other in calls])),
    }


def call_metrics(model: Any, tokenizer: Any, prediction: Any, count: int = 100) -> dict[str, float]:
    """Let the model answer the first prompts of an evaluation set, greedily; {} where rows have no prompt."""
    rows = list(zip(prediction.inputs, prediction.label_ids, strict=True))[:count]
    starts = [int(np.argmax(labels != -100)) for _, labels in rows]
    if not all(starts):
        return {}
    prompts = {"input_ids": [row[:n].tolist() for (row, _), n in zip(rows, starts, strict=True)]}
    right = [tokenizer.decode(labels[labels != -100], skip_special_tokens=True) for _, labels in rows]
    batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)
    longest = max(int((labels != -100).sum()) for _, labels in rows)
    with torch.no_grad():
        found = model.generate(**batch, max_new_tokens=longest + 8, do_sample=False)
    said = tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return matches(said, right)


def _schema(name: str, signature: inspect.Signature) -> dict[str, Any]:
    properties: dict[str, dict] = {key: {} for key in signature.parameters}
    parameters = {"type": "object", "properties": properties, "required": _required(signature)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _required(signature: inspect.Signature) -> list[str]:
    return [key for key, parameter in signature.parameters.items() if parameter.default is parameter.empty]


def _arguments(signature: inspect.Signature, rng: random.Random) -> dict[str, Any]:
    """Choose values for the required arguments and some others, three in all at most."""
    required = _required(signature)
    others = [key for key in signature.parameters if key not in required]
    wanted = required + others[: rng.randint(0 if required else 1, 2)]
    return {key: _value(signature.parameters[key].default, rng) for key in wanted[:3]}


def _value(default: Any, rng: random.Random) -> Any:
    if isinstance(default, bool):
        return rng.random() < 0.5
    return rng.randrange(100) if isinstance(default, int) or rng.random() < 0.2 else rng.choice(WORDS)


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def _spoiled(arguments: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Leave out one argument, or give it another value."""
    key = rng.choice(sorted(arguments))
    if len(arguments) > 1 and rng.random() < 0.5:
        return {k: v for k, v in arguments.items() if k != key}
    return {**arguments, key: rng.choice([word for word in WORDS if word != arguments[key]])}
