"""Losses by source: the same loss for every source is that loss; weights, curves and rows are the source's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers as tf
from datasets import Dataset

from hf_stages import Stage, StagedTrainer
from hf_stages.data import Lengths, Packed, Preferences
from hf_stages.data.collators.progress import AtProgress
from hf_stages.data.source_column import SourceCollator
from hf_stages.losses import AttentionKL, AttentionMSE, AttentionRelation, HiddenMSE, LogitKL, TaskLoss
from tests.support import tiny
from tests.workers.cases import CASES, Gradients, Pad, Rows, apart, arguments, bert, text
from tests.workers.heads import bart, built, mixtral


def _gradient(out, case, loss, sources, batch=8, accumulation=1, teacher=None):
    seen = Gradients()
    args = arguments(
        out, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, remove_unused_columns=False
    )
    rows = case.rows()
    if isinstance(loss, dict):
        rows = [{**row, "source": source} for row, source in zip(rows, sources, strict=True)]
    trainer = StagedTrainer(
        case.model(), args, train_dataset=Rows(rows), eval_dataset=Rows(case.rows()), data_collator=Pad(),
        callbacks=[seen], teacher=teacher, stages=[Stage("one", "1 steps", loss=loss)],
    )  # fmt: skip
    trainer.train()
    return seen.found, next(log for log in trainer.state.log_history if "loss" in log)


SOURCES = ["code", "text", "text", "code", "text", "text", "text", "code"]


@pytest.mark.parametrize("name", ["classifier", "causal", "token", "regression", "multilabel", "seq2seq"])
def test_one_loss_for_every_source_is_that_loss(name, tmp_path):
    case = CASES[name]
    whole, _ = _gradient(tmp_path / "whole", case, TaskLoss(), SOURCES)
    split, log = _gradient(tmp_path / "split", case, {"code": TaskLoss(), "text": TaskLoss()}, SOURCES, 2, 4)
    assert apart(whole, split) < 1e-5
    assert log["loss_TaskLoss_code"] + log["loss_TaskLoss_text"] == pytest.approx(log["loss"], rel=1e-5)


def test_teacher_losses_and_weights_are_those_of_the_source(tmp_path):
    case, teacher = CASES["classifier"], bert(num_hidden_layers=4)()
    features = HiddenMSE() + AttentionMSE()
    options = {"sources": SOURCES, "teacher": teacher}
    each = {"code": features + LogitKL(), "text": features + LogitKL()}
    whole, _ = _gradient(tmp_path / "a", case, features + LogitKL(), **options)
    split, _ = _gradient(tmp_path / "b", case, each, **options, batch=4, accumulation=2)
    assert apart(whole, split) < 1e-5
    code, _ = _gradient(tmp_path / "c", case, {"code": features, "text": 0.0 * features}, **options)
    text_, _ = _gradient(tmp_path / "d", case, {"code": 0.0 * features, "text": features}, **options)
    both, _ = _gradient(tmp_path / "e", case, {"code": features, "text": 3.0 * features}, **options)
    assert apart(both, {n: code[n] + 3 * text_[n] for n in code}) < 1e-5


def test_the_column_survives_a_datasets_stage(tmp_path):
    data = tiny.class_data(8).add_column("source", ["a", "b"] * 4)
    args = arguments(tmp_path, per_device_train_batch_size=4)
    stages = [Stage("one", "1 epochs", loss={"a": TaskLoss(), "b": 0.5 * TaskLoss()}), Stage("two", "1 epochs")]
    trainer = StagedTrainer(tiny.bert(), args, train_dataset=data, stages=stages)
    trainer.train()
    assert "loss_TaskLoss_b" in trainer.state.log_history[0]
    assert "loss_TaskLoss_b" not in trainer.state.log_history[-2]


def test_unknown_and_missing_sources_are_refused(tmp_path):
    rows = text(lambda g, ids: ids[0] % 3)()
    args = arguments(tmp_path, per_device_train_batch_size=8, remove_unused_columns=False)
    loss = {"code": TaskLoss(), "text": TaskLoss()}

    def train(rows):
        StagedTrainer(
            bert()(), args, train_dataset=Rows(rows), data_collator=Pad(), stages=[Stage("one", "1 steps", loss=loss)]
        ).train()

    with pytest.raises(ValueError, match="a row comes from 'tools'"):
        train([{**row, "source": "tools"} for row in rows])
    with pytest.raises(ValueError, match="give the dataset a column 'source'"):
        train(rows)
    smooth = arguments(tmp_path, per_device_train_batch_size=8, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="TaskLoss by source is computed from the logits"):
        StagedTrainer(
            bert()(), smooth, train_dataset=Dataset.from_list([{**r, "source": "code"} for r in rows]),
            stages=[Stage("one", "1 steps", loss=loss)],
        ).plan()  # fmt: skip


def test_updates_without_a_row_of_a_source_do_not_count_as_zeros(tmp_path):
    features = HiddenMSE() + AttentionMSE() + AttentionKL() + AttentionRelation() + LogitKL()
    data = tiny.class_data(84).add_column("source", ["b", "a", "a", "a"] + ["a"] * 80)
    args = arguments(tmp_path, per_device_train_batch_size=4, train_sampling_strategy="sequential", logging_steps=1)
    stages = [Stage("one", "21 steps", loss={"a": TaskLoss(), "b": features})]
    trainer = StagedTrainer(tiny.bert(), args, train_dataset=data, teacher=tiny.bert(1), stages=stages)
    trainer.train()  # more updates without a row than a term may be zero
    values = [log["loss_AttentionKL_b"] for log in trainer.state.log_history if "loss" in log]
    assert values[0] > 0
    assert not any(values[1:])


def test_rows_that_are_packed_or_split_are_of_no_one_source():
    """Each source's loss would run over all rows, and the sum be twice what it is."""
    rows = [{"input_ids": [5, 6, 7], "source": name} for name in ("a", "b", "a")]
    inner = {"packed": Packed(8, shift=True, mask="positions"), "split": Lengths(2, longer="split")}
    for collator in inner.values():
        with pytest.raises(ValueError, match=r"it differs by source, and the data_collator makes . rows of 3 examples"):
            SourceCollator(collator, ("a", "b"))(rows)
        assert "source" not in SourceCollator(collator)(rows)
    assert SourceCollator(Lengths(2), ("a", "b"))(rows)["source"].tolist() == [0, 1, 0]
    pairs = [{"prompt": "p", "chosen": "x", "rejected": "y", "source": name} for name in ("b", "a")]
    ready = Preferences().build(tiny.tokenizer())
    assert SourceCollator(ready, ("a", "b"))(pairs)["source"].tolist() == [1, 1, 0, 0]
    assert SourceCollator(AtProgress(ready, Preferences()), ("a", "b"))(pairs)["source"].tolist() == [1, 1, 0, 0]


def test_tokens_are_counted_of_pairs_and_packed_rows_too():
    def counted(collator, rows):
        return SourceCollator(collator, drawn=("a", "b"))(rows)["drawn"].tolist()

    ready = Preferences().build(tiny.tokenizer())
    pairs = [{"prompt": "p", "chosen": "xyz", "rejected": "y", "source": name} for name in ("b", "a")]
    each = ready(pairs[:1])["attention_mask"].sum().item()
    assert counted(ready, pairs) == [[1, each], [0, each]]
    packed = Packed(8, shift=True, mask="positions")
    rows = [{"input_ids": list(range(5, 5 + n)), "source": name} for n, name in ((3, "a"), (4, "b"))]
    assert counted(packed, rows) == [[0, 3], [1, 4]]
    texts = [{"n": 3, "source": "a"}, {"n": 4, "source": "b"}, {"n": 4, "source": "b"}]
    made = replace(packed, collator=lambda rows: Lengths(8)([{"input_ids": [5] * row["n"]} for row in rows]))
    assert counted(made, texts) == [[0, 3], [1, 4], [1, 4]]  # eleven in equal parts


# ---- what a model adds to its loss, and where its labels stand ------------------------------------------------------


def routed(**changes):
    return mixtral(output_router_logits=True, router_aux_loss_coef=1.0, **changes)


ADDED = {
    "a router's loss": routed,
    "labels not moved inside": lambda: bart("BartForCausalLM"),
    "GPT-2, which names no loss": lambda: built(
        "GPT2LMHeadModel", tf.GPT2Config(
            n_layer=1, n_embd=8, n_head=1, vocab_size=tiny.VOCAB, bos_token_id=1, eos_token_id=1, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_the_sources_together_are_the_models_own_loss(name, tmp_path):
    case = replace(CASES["causal"], model=ADDED[name]())
    whole, log = _gradient(tmp_path / "whole", case, TaskLoss(), SOURCES)
    own = case.model().train()(**Pad()(case.rows())).loss.item()
    assert log["loss"] == pytest.approx(own, rel=1e-5)
    split, log = _gradient(tmp_path / "split", case, {"code": TaskLoss(), "text": TaskLoss()}, SOURCES)
    assert log["loss"] == pytest.approx(own, rel=1e-5)
    assert apart(whole, split) < 1e-4


def test_what_a_model_adds_is_shared_by_items_and_weighed(tmp_path):
    """Half the weight on every source is half the loss, the router's too; one source alone brings its own share."""
    case = replace(CASES["causal"], model=routed())
    whole, _ = _gradient(tmp_path / "whole", case, TaskLoss(), SOURCES)
    half, _ = _gradient(tmp_path / "half", case, {"code": 0.5 * TaskLoss(), "text": 0.5 * TaskLoss()}, SOURCES)
    assert apart({n: 2 * g for n, g in half.items()}, whole) < 1e-4
    code, _ = _gradient(tmp_path / "code", case, {"code": TaskLoss(), "text": 0.0 * TaskLoss()}, SOURCES)
    text_, _ = _gradient(tmp_path / "text", case, {"code": 0.0 * TaskLoss(), "text": TaskLoss()}, SOURCES)
    assert apart({n: code[n] + text_[n] for n in code}, whole) < 1e-4
