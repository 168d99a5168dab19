"""What the benchmarks share: a model of a given size, token data, arguments, medians, and the JSON line at the end."""

from __future__ import annotations

import json
import os
import statistics

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments


def llama(hidden: int = 256, layers: int = 4, vocab: int = 2048) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64,
        )
    )


def tokens(rows: int, length: int, vocab: int = 2048) -> Dataset:
    ids = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def arguments(out: str, **changes) -> TrainingArguments:
    given = {"per_device_train_batch_size": 8, "logging_strategy": "no", "save_strategy": "no", "report_to": []}
    given |= {"disable_tqdm": True, "optim": "adamw_torch_fused", "use_cpu": not torch.cuda.is_available()}
    return TrainingArguments(out, **{**given, **changes})


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def say(name: str, **results) -> None:
    print(json.dumps({"benchmark": name, "threads": torch.get_num_threads(), "torch": torch.__version__, **results}))
