"""Write more training sentences out of a few, with a masked language model.

The model first learns from the docstrings of Python's standard library. With a pretrained model of your own,
augmentation is one line: Augment("bert-base-uncased", text="question", n=20)(dataset).
"""

from __future__ import annotations

import re
from pathlib import Path

from datasets import Dataset
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, set_seed

from _arguments import command_line, training_arguments
from hf_stages import Augment, Collator, Stage, StagedTrainer
from hf_stages.data.sample_text import prose


def sentences(split: str, size: int) -> list[str]:
    """Find sentences of five to twenty plain words."""
    text = re.sub(r"\s+", " ", " ".join(prose(size, split=split)["text"]))
    found = re.findall(r"(?<=[.] )[A-Z][a-z]*(?: [a-zA-Z',]+){4,19}[.]", text)
    return list(dict.fromkeys(found))


def train_masked_model(texts: list[str], out: Path, steps: int) -> Path:
    """Train a tokenizer and a masked language model from scratch; returns the stage's folder."""
    set_seed(0)
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=3000, show_progress=False)
    tokenizer = BertTokenizer(vocab=pieces.get_vocab())
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    trainer = StagedTrainer(
        BertForMaskedLM(config),
        training_arguments(
            out, per_device_train_batch_size=32, learning_rate=3e-3, warmup_steps=0.1, logging_steps=100
        ),
        stages=[Stage("gaps", f"{steps} steps")],
        train_dataset=Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=64))),
        data_collator=Collator("DataCollatorForLanguageModeling").build(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    return out / "01-gaps"


def main(out: Path, steps: int, size: int = 2_000_000) -> tuple[Dataset, Dataset]:
    # 1. Train a masked language model. A pretrained one does better.
    model = train_masked_model(sentences("train", size), out / "model", steps)

    # 2. Take some short sentences that the model has not seen, with a second column.
    rows = [text for text in sentences("eval", size // 10) if text.count(" ") < 12][:200]
    data = Dataset.from_dict({"text": rows, "length": [len(text) for text in rows]})

    # 3. Look at some copies, then make them all. A second call with the same data, model and settings reads the cache.
    augment = Augment(model, text="text", n=5, cache=out / "augmented")
    print(augment.preview(data, 5))
    return data, augment(data)


if __name__ == "__main__":
    options = command_line(
        __doc__, out="augment-text-out", steps=600, steps_help="updates of the masked language model"
    ).parse_args()
    data, more = main(options.out, options.steps)
    print(f"\n{len(data)} sentences became {len(more)}")
