"""Raw data of stages under TRL's SFTTrainer: prepared once, packed as planned, refused where they do not fit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from hf_stages import Stage
from hf_stages.training.preparing.prepared_data import PreparedData
from tests.support import tiny
from tests.support.sft import (
    PROSE,
    TALK,
    StagedSFT,
    arguments,
    logged,
    model,
    prose,
    staged,
    talk,
)


def test_stages_may_bring_raw_text_to_train_and_to_evaluate(tmp_path):
    """Training sets, evaluation sets and budgets of tokens; completions alone where a set has prompts."""
    trainer = staged(
        tmp_path,
        Stage("prose", "200 tokens"),
        Stage(
            "talk",
            "1 epochs",
            train_dataset=talk(),
            eval_dataset=Dataset.from_dict({k: v[:3] for k, v in TALK.items()}),
        ),
        eval_dataset={"held": Dataset.from_dict({"text": PROSE[:2]})},
    )
    lengths = [len(text) + 1 for text in PROSE]
    assert trainer.plan()["prose"].size.tokens_per_example == pytest.approx(sum(lengths) / len(lengths))
    trainer.train()
    rows = trainer.train_data(trainer.recipe["talk"].train_dataset, trainer.recipe["talk"])
    assert [row["labels"].count(-100) for row in rows][:2] == [len(prompt) for prompt in TALK["prompt"][:2]]
    metrics = json.loads((tmp_path / "02-talk" / "stage.json").read_text())["metrics"]
    assert metrics["eval_items"] == sum(len(text) + 1 for text in TALK["completion"][:3])
    assert metrics["eval_held_items"] == sum(len(text) for text in PROSE[:2])  # the first token is no target


def test_packing_is_planned_with_the_rows_that_are_trained(tmp_path):
    args = arguments(tmp_path, packing=True, max_length=96, per_device_train_batch_size=2)
    held = Dataset.from_dict({"text": PROSE[:3]})
    trainer = staged(
        tmp_path, Stage("a", "1 epochs"), Stage("b", "1 epochs", train_dataset=talk(), eval_dataset=held), args=args
    )
    plan = trainer.plan()
    packed = trainer.train_data(trainer.recipe["b"].train_dataset, trainer.recipe["b"])
    assert plan["b"].size.examples == len(packed) < len(talk())
    trainer.train()
    assert trainer.state.global_step == plan.total_steps
    metrics = json.loads((tmp_path / "02-b" / "stage.json").read_text())["metrics"]
    assert metrics["eval_items"] == sum(len(text) for text in PROSE[:3])  # packed once, not twice


def test_raw_text_may_be_mixed_streamed_and_named(tmp_path):
    from hf_stages.data import Mixture

    mixture = Mixture({"prose": 0.5, "talk": 0.5}, sources={"prose": prose(), "talk": talk()})
    trainer = staged(tmp_path / "a", Stage("a", "3 steps"), data=mixture)
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 3
    stream = staged(tmp_path / "b", Stage("a", "3 steps"), data=prose().to_iterable_dataset())
    stream.train()
    assert len(logged(stream, "mean_token_accuracy")) == 3
    named = [Stage("a", "1 steps", train_dataset="talk"), Stage("b", "1 steps", train_dataset="prose")]
    by_name = staged(tmp_path / "c", *named, data={"prose": prose(), "talk": talk()})
    by_name.train()
    assert len(logged(by_name, "mean_token_accuracy")) == 2


def test_data_that_cannot_be_prepared_are_refused_by_the_plan(tmp_path):
    odd = Dataset.from_dict({"words": ["a", "b"]})
    for given, said in (
        ({"train_dataset": odd}, r"stage 'b': train_dataset: could not be prepared .* its columns are words"),
        ({"eval_dataset": odd}, r"stage 'b': eval_dataset: could not be prepared"),
        ({"train_dataset": [{"text": "a"}]}, r"stage 'b': train_dataset: .* got list; make it a Dataset"),
    ):
        with pytest.raises(ValueError, match=said):
            staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 steps", **given)).plan()


def test_text_is_refused_where_answers_alone_are_trained(tmp_path):
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% "
        "endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    )
    messages = [[{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]] * 4
    trainer = StagedSFT(
        model(),
        arguments(tmp_path, assistant_only_loss=True),
        train_dataset=Dataset.from_dict({"messages": messages}),
        processing_class=tiny.tokenizer(template),
        stages=[Stage("a", "1 steps"), Stage("b", "1 steps", train_dataset=prose())],
    )
    with pytest.raises(ValueError, match=r"stage 'b': train_dataset: assistant_only_loss needs conversations"):
        trainer.plan()


@pytest.mark.parametrize(
    ("found", "row", "said"),
    [
        (
            {"_is_vision_dataset": False},
            {"image": None, "text": "a"},
            "it holds images, and the trainer was made for text",
        ),
        (
            {"_is_vision_dataset": True},
            {"images": [], "prompt": "a", "completion": "b"},
            "completion_only_loss was set to False",
        ),
    ],
)
def test_what_the_first_data_decided_for_all_is_refused_where_it_does_not_fit(found, row, said):
    trainer = SimpleNamespace(
        completion_only_loss=False, args=SimpleNamespace(completion_only_loss=None), _skip_prepare_dataset=True, **found
    )
    data = PreparedData(trainer, lambda dataset: dataset)
    with pytest.raises(ValueError, match=f"stage 'b': train_dataset: {said}"):
        data.prepare_for_stage(Dataset.from_list([row]), "b", "stage 'b': train_dataset", evaluation=False)


def test_a_hook_of_ones_own_prepares_the_rows_of_every_stage(tmp_path):
    class Upper(StagedSFT):
        def stage_dataset(self, dataset, stage):
            if "text" in dataset.column_names:
                dataset = dataset.map(lambda row: {"text": row["text"][:4]})
            return super().stage_dataset(dataset, stage)

    short = staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 epochs", train_dataset=prose()), kind=Upper)
    assert short.plan()["b"].size.tokens_per_example <= 5
