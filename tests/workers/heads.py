"""Every kind of head, with eight rows that say how its loss is divided. Used by tests and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf

from hf_stages import Stage, StagedTrainer
from tests.support import tiny
from tests.workers.cases import (
    Gradients,
    Pad,
    Rows,
    arguments,
    bert,
    classes,
    images,
    scattered,
    seq2seq,
    t5,
    text,
    uneven,
)

SAME = 2e-5
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@dataclass(frozen=True)
class PadAll:
    """Pads whatever is ragged, along its last dimension."""

    extra: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {}
        for key in rows[0]:
            values = [torch.as_tensor(row[key]) for row in rows]
            if key in ("input_ids", "attention_mask", "labels", "input_values") and values[0].dim():
                extra = self.extra * (100 if key == "input_values" or "input_values" in rows[0] else 1)
                length = max(value.shape[-1] for value in values) + (0 if key == "labels" and extra > 99 else extra)
                fill = -100 if key == "labels" else 0
                pads = [(0, length - value.shape[-1]) for value in values]
                values = [torch.nn.functional.pad(v, p, value=fill) for v, p in zip(values, pads, strict=True)]
            batch[key] = torch.stack(values)
        return batch


@dataclass(frozen=True)
class Head:
    model: Callable[[], Any]
    rows: Callable[[], list[dict[str, Any]]]
    pads: bool = True
    collator: type = Pad
    same: float = SAME
    args: Mapping[str, Any] = field(default_factory=dict)


def built(kind: str, config: Any) -> Callable[[], Any]:
    def build() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(tf, kind)(config)

    return build


def drawn(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ctc(reduction: str) -> Callable[[], Any]:
    config = tf.Wav2Vec2Config(
        **SMALL,
        vocab_size=12,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction=reduction,
        pad_token_id=0,
    )
    return built("Wav2Vec2ForCTC", config)


def speech() -> list[dict[str, Any]]:
    rows = []
    for index in range(8):
        sound = torch.randn(300 + 40 * index, generator=drawn(index))
        labels = torch.randint(1, 12, (2 + index,), generator=drawn(index))
        rows.append(
            {"input_values": sound, "attention_mask": torch.ones(len(sound), dtype=torch.int64), "labels": labels}
        )
    return rows


def segformer(labels: int) -> Callable[[], Any]:
    def build() -> Any:
        config = tf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            num_labels=labels,
            drop_path_rate=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
        )
        model = built("SegformerForSemanticSegmentation", config)()
        model.decode_head.batch_norm = torch.nn.Identity()  # its statistics are of a micro-batch, whatever the loss
        return model

    return build


def pictures(labels: int) -> Callable[[], list[dict[str, Any]]]:
    def rows() -> list[dict[str, Any]]:
        found = []
        for index in range(8):
            target = torch.randint(0, labels, (16, 16), generator=drawn(index))
            target[: 2 * index] = 255
            found.append({"pixel_values": torch.randn(3, 16, 16, generator=drawn(index)), "labels": target})
        return found

    return rows


def choices() -> list[dict[str, Any]]:
    rows = []
    for index in range(8):
        ids = torch.randint(3, tiny.VOCAB, (3, 4 + index), generator=drawn(index))
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": index % 3})
    return rows


def answers(outside: int = 0) -> Callable[[], list[dict[str, Any]]]:
    """Where an answer begins and ends. Some begin, more end behind the text that is left of them."""

    def rows() -> list[dict[str, Any]]:
        found = []
        for index in range(8):
            ids = torch.randint(3, tiny.VOCAB, (12,), generator=drawn(index))
            start, end = (99 if index < outside else index), (99 if index < 2 * outside else index + 2)
            found.append({"input_ids": ids, "start_positions": start, "end_positions": end})
        return found

    return rows


def pretraining() -> list[dict[str, Any]]:
    return [{**row, "next_sentence_label": index % 2} for index, row in enumerate(text(uneven)())]


def covered() -> list[dict[str, Any]]:
    rows = []
    for index in range(8):
        hidden = torch.arange(16) < 2 + index
        rows.append({"pixel_values": torch.randn(3, 16, 16, generator=drawn(index)), "bool_masked_pos": hidden})
    return rows


def begun(generator: torch.Generator, ids: list[int]) -> list[int]:
    """Labels from the first token on: where nothing is moved, it is a target."""
    kept = 1 + len(ids) % 4
    return ids[:kept] + [-100] * (len(ids) - kept)


def bart(kind: str) -> Callable[[], Any]:
    config = tf.BartConfig(
        vocab_size=tiny.VOCAB,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        dropout=0.0,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        is_decoder=True,
        attention_dropout=0.0,
        activation_dropout=0.0,
        is_encoder_decoder=False,
    )
    return built(kind, config)


def mixtral(**changes: Any) -> Callable[[], Any]:
    config = tf.MixtralConfig(
        **SMALL, vocab_size=tiny.VOCAB, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **changes
    )
    return built("MixtralForCausalLM", config)


def masked_images() -> Any:
    config = tf.ViTConfig(
        **SMALL,
        image_size=16,
        patch_size=4,
        encoder_stride=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return built("ViTForMaskedImageModeling", config)()


def number(generator: torch.Generator, ids: list[int]) -> float:
    return torch.randn((), generator=generator).item()


HEADS = {
    "classification": Head(bert(), text(classes)),
    "regression": Head(bert(num_labels=1), text(number)),
    "several labels": Head(
        bert(problem_type="multi_label_classification"), text(lambda g, ids: [float(i % 2) for i in ids[:3]])
    ),
    "image classification": Head(tiny.vit, images, pads=False),
    "tokens": Head(bert("BertForTokenClassification"), text(scattered)),
    "masked tokens": Head(bert("BertForMaskedLM"), text(uneven)),
    "next token": Head(tiny.llama, text(uneven)),
    "next token, not moved inside": Head(bart("BartForCausalLM"), text(begun)),
    "next token, smoothed": Head(tiny.llama, text(uneven), args={"label_smoothing_factor": 0.2}),
    "mixture of experts": Head(mixtral(), text(uneven)),
    "sequence to sequence": Head(t5, seq2seq),
    "multiple choice": Head(bert("BertForMultipleChoice"), choices, collator=PadAll),
    "question answering": Head(bert("BertForQuestionAnswering", num_labels=2), answers(), pads=False),
    "question answering, outside": Head(bert("BertForQuestionAnswering", num_labels=2), answers(2), pads=False),
    "two heads": Head(bert("BertForPreTraining"), pretraining),
    "CTC, sum": Head(ctc("sum"), speech, collator=PadAll, same=1e-4),
    "CTC, mean": Head(ctc("mean"), speech, collator=PadAll, same=1e-4),
    "segmentation": Head(segformer(3), pictures(3), pads=False),
    "segmentation, one class": Head(segformer(1), pictures(2), pads=False),
    "masked images": Head(masked_images, covered, pads=False, args={"label_names": ["bool_masked_pos"]}),
}


def update(
    out: Any, head: Head, batch: int, accumulation: int = 1, *, extra: int = 0, kind: Any = StagedTrainer
) -> dict[str, torch.Tensor]:
    """The gradient of one update over the head's eight rows."""
    seen = Gradients()
    staged = {"stages": [Stage("one", "1 steps")]} if kind is StagedTrainer else {}
    steps = {} if staged else {"max_steps": 1, "train_sampling_strategy": "sequential"}
    args = arguments(
        out, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **head.args, **steps
    )
    trainer = kind(
        head.model(),
        args,
        train_dataset=Rows(head.rows()),
        data_collator=head.collator(extra),
        callbacks=[seen],
        **staged,
    )
    trainer.train()
    return seen.found
