"""Rows without an input of the model are refused before the first step, with how to mend it."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import BertForQuestionAnswering, TrainingArguments

from hf_stages import Stage, StagedTrainer, recipes
from hf_stages.core.registry import RecipeError
from hf_stages.data import Mixture
from hf_stages.losses import LogitKL
from hf_stages.training.from_recipe import prepare
from tests.support import tiny

RAW = Dataset.from_dict({"text": ["a b", "c"] * 4, "label": [0, 1] * 4})
PLAIN = [{"text": "a b", "labels": 0}] * 8


class TokenizingCollator:
    """One that reads whole rows, as many people have."""

    def __call__(self, rows):
        ids = torch.tensor([[3, 4, 5]] * len(rows))
        return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}


class OwnTrainer(StagedTrainer):
    """One that knows more columns than the model has."""

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["text", "label"]


@pytest.fixture
def trainer(tmp_path):
    def make(data=None, kind=StagedTrainer, model=None, stage=(), **options):
        args = {name: options.pop(name) for name in ("remove_unused_columns",) if name in options}
        args = TrainingArguments(tmp_path / "out", use_cpu=True, report_to="none", **args)
        return kind(
            model or tiny.bert(), args, stages=[Stage("a", "1 steps", **dict(stage))], train_dataset=data, **options
        )

    return make


@pytest.mark.parametrize("data", [RAW, PLAIN, RAW.to_iterable_dataset(), Mixture({"x": 1}, {"x": RAW})], ids=str)
@pytest.mark.parametrize("build", [tiny.bert, tiny.llama])
def test_raw_text_is_refused_with_how_to_tokenize_it(trainer, data, build):
    words = (
        r"stage 'a': train_dataset: its rows hold text, label.* takes none.*tokenize first\. "
        r"In a recipe.*text: text.*rows\['text'\]"
    )
    with pytest.raises(ValueError, match=words):
        trainer(data, model=build()).train()


def test_raw_text_to_evaluate_on_is_refused(trainer):
    with pytest.raises(ValueError, match="stage 'a': eval_dataset: its rows hold text, label"):
        trainer(tiny.class_data(8), eval_dataset={"fine": tiny.class_data(8), "raw": RAW}).train()


def test_raw_images_are_refused(trainer):
    data = Dataset.from_dict({"image": [[[0, 1], [1, 0]]] * 8, "label": [0] * 8})
    with pytest.raises(
        ValueError, match=r"its rows hold image, label.*takes pixel_values and such.*the model's processor"
    ):
        trainer(data, model=tiny.vit()).train()


@pytest.mark.parametrize("collator", [None, TokenizingCollator()])
def test_a_collator_that_never_sees_the_text_does_not_help(trainer, collator):
    with pytest.raises(ValueError, match="its rows hold text, label"):
        trainer(RAW, data_collator=collator).train()


def test_a_collator_that_tokenizes_may_get_raw_text(trainer):
    trainer(RAW, data_collator=TokenizingCollator(), remove_unused_columns=False).train()


def test_a_trainer_with_its_own_columns_is_not_judged(trainer):
    trainer(RAW, kind=OwnTrainer, data_collator=TokenizingCollator()).train()


def test_rows_with_an_input_of_another_name_are_accepted(trainer):
    ids = torch.zeros(8, 4, 32).tolist()
    trainer(Dataset.from_dict({"inputs_embeds": ids, "labels": [0] * 8})).plan()


def test_raw_text_of_a_recipe_is_refused_with_the_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"story": "a b c"}) for _ in range(8)))
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    (tmp_path / "run.yaml").write_text(
        f"model: {{config: {json.dumps(config)}}}\nargs: {{output_dir: out, use_cpu: true}}\n"
        "sources:\n  rows: {path: json, data_files: rows.jsonl}\ntrain_dataset: rows\n"
        "stages:\n  - {name: a, until: 1 steps}\n"
    )
    prepared = prepare(recipes.load(tmp_path / "run.yaml"), output_dir=str(tmp_path / "out"))
    with pytest.raises(RecipeError, match=r"run\.yaml:5:1: stage 'a': train_dataset: its rows hold story.*text: story"):
        prepared.plan()


class OwnLoss(StagedTrainer):
    """Needs no labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


def test_rows_without_labels_are_refused(trainer):
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5]] * 8})
    with pytest.raises(
        ValueError, match=r"stage 'a': train_dataset: its rows hold input_ids, and the loss of .* needs labels"
    ):
        trainer(rows).plan()
    with pytest.raises(ValueError, match="needs start_positions or end_positions"):
        trainer(rows, model=BertForQuestionAnswering(tiny.bert_config())).plan()
    assert trainer(rows, kind=OwnLoss).plan()
    assert trainer(rows, compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.sum()).plan()
    assert trainer(rows, stage={"loss": LogitKL()}, teacher=tiny.bert(3)).plan()
    assert trainer(rows, model=tiny.llama(), data_collator=lambda rows: rows).plan()
