"""Stage folders to export, trained for one step from weights that are all random: no bias is zero, no norm is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.layers.quantized import Quantized
from hf_stages.models.stage_models import load_stage
from tests.support import tiny

TEXT = "the cat sat on the mat and the other cat ate what the first cat had not eaten, at last: 3 mats, 12 cats"


def trained(out: Path, model: Any, transforms: list[Any], *, tokenizer: Any = None, exporters: Any = ()) -> Path:
    """The folder of a stage that took one step."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    data = tiny.lm_data(8) if "CausalLM" in type(model).__name__ else tiny.class_data(8)
    args = TrainingArguments(
        str(out), per_device_train_batch_size=8, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    stages = [Stage("low", "1 steps", transforms=transforms, exporters=exporters)]
    StagedTrainer(model, args, stages=stages, train_dataset=data, processing_class=tokenizer).train()
    return out / "01-low"


def loaded(folder: Path, *, rounding: bool = True) -> Any:
    """The stage's own model; without ``rounding`` only its weights are quantized."""
    model, _ = load_stage(folder)
    for module in model.modules():
        if isinstance(module, Quantized) and not rounding:
            module.activations = None
    return model


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: BPE over words that begin with a mark, bytes to fall back on."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.train_from_iterator([TEXT], trainers.BpeTrainer(special_tokens=special, vocab_size=300, show_progress=False))
    made = json.loads(pieces.to_str())["model"]
    tokenizer.model = models.BPE(
        made["vocab"], [tuple(merge) for merge in made["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokenizer.add_special_tokens(special[:3])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def byte_level(split: str | None = None) -> PreTrainedTokenizerFast:
    """As GPT-2's, or with a pattern that cuts text, as Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        cut = pre_tokenizers.Split(Regex(split), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, tokenizer.pre_tokenizer])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<pad>", "<eos>"], vocab_size=290, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def word_piece() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*special, "the", "cat", "##s", "mat", "e", "##at"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{key}_token": token for key, token in names.items()}
    )
