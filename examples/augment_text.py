"""A masked language model learns the standard library's docstrings, then writes more sentences out of a few.

With a model of your own it is one line: Augment("bert-base-uncased", text="question", n=20)(dataset).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from datasets import Dataset
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, TrainingArguments, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.data import Augment, Collator
from hf_stages.data.sample_text import prose


def sentences(split: str, size: int) -> list[str]:
    """Sentences of plain words, five to twenty of them."""
    text = re.sub(r"\s+", " ", " ".join(prose(size, split=split)["text"]))
    found = re.findall(r"(?<=[.] )[A-Z][a-z]*(?: [a-zA-Z',]+){4,19}[.]", text)
    return list(dict.fromkeys(found))


def masked_model(texts: list[str], out: Path, steps: int) -> Path:
    """A model and its tokenizer, trained from nothing."""
    set_seed(0)
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=3000, show_progress=False)
    tokenizer = BertTokenizer(vocab=pieces.get_vocab())
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    args = TrainingArguments(
        str(out), per_device_train_batch_size=32, learning_rate=3e-3, warmup_steps=0.1, report_to="none", use_cpu=True,
        save_strategy="no", logging_steps=100, disable_tqdm=True,
    )  # fmt: skip
    trainer = StagedTrainer(
        BertForMaskedLM(config),
        args,
        stages=[Stage("gaps", f"{steps} steps")],
        train_dataset=Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=64))),
        data_collator=Collator("DataCollatorForLanguageModeling").build(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    return out / "01-gaps"


def main(out: Path, steps: int, size: int = 2_000_000) -> tuple[Dataset, Dataset]:
    model = masked_model(sentences("train", size), out / "model", steps)
    rows = [text for text in sentences("eval", size // 10) if text.count(" ") < 12][:200]
    data = Dataset.from_dict({"text": rows, "length": [len(text) for text in rows]})

    augment = Augment(model, text="text", n=5, cache=out / "augmented")
    print(augment.preview(data, 5))
    more = augment(data)  # a second call with the same data, model and settings reads out/augmented
    return data, more


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("augment-text-out"))
    parser.add_argument("--steps", type=int, default=600, help="updates of the masked language model")
    given = parser.parse_args()
    data, more = main(given.out, given.steps)
    print(f"\n{len(data)} sentences became {len(more)}")
