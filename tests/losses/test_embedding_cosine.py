"""Pooled outputs against a few lines of reference; padding on either side changes nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import BertModel, LlamaModel

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import EmbeddingCosine
from tests.support import tiny
from tests.workers.cases import NO_DROPOUT, Pad, Rows, arguments, text


def encoder(seed: int, **changes) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(type(tiny.bert_config()).from_dict({**tiny.bert_config().to_dict(), **NO_DROPOUT, **changes}))


def _reference(model, rows, pooling):
    """One row at a time, so without any padding."""
    pooled = []
    for row in rows:
        outputs = model.eval()(input_ids=torch.tensor([row["input_ids"]]))
        states = outputs.last_hidden_state[0]
        kinds = {"mean": states.mean(0), "first": states[0], "last": states[-1]}
        pooled.append(outputs.pooler_output[0] if pooling == "pooler" else kinds[pooling])
    return torch.stack(pooled)


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "pooler"])
def test_it_is_one_minus_the_cosine_of_unpadded_rows(pooling, tmp_path):
    rows = [{k: row[k] for k in ("input_ids", "attention_mask")} for row in text(lambda g, ids: 0)()]
    student, teacher = encoder(0), encoder(1, num_hidden_layers=3)
    first, second = (_reference(m, rows, pooling) for m in (student, teacher))
    expected = (1 - (first * second).sum(-1) / first.norm(dim=-1) / second.norm(dim=-1)).mean().item()
    args = arguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, eval_strategy="epoch", learning_rate=0.0
    )
    trainer = StagedTrainer(
        student, args, train_dataset=Rows(rows), eval_dataset=Rows(rows), data_collator=Pad(3), teacher=teacher,
        stages=[Stage("embed", "1 steps", loss=EmbeddingCosine(pooling))],
    )  # fmt: skip
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert logged == [pytest.approx(expected, rel=1e-4)]
    evaluated = [log["eval_EmbeddingCosine"] for log in trainer.state.log_history if "eval_EmbeddingCosine" in log]
    assert evaluated == [pytest.approx(expected, rel=1e-4)] * len(evaluated)
    assert evaluated


def test_the_last_token_is_found_under_left_padding():
    torch.manual_seed(0)
    states = torch.randn(2, 5, 8)
    right, left = torch.tensor([[1, 1, 1, 0, 0]] * 2), torch.tensor([[0, 0, 1, 1, 1]] * 2)
    loss = EmbeddingCosine("last")
    for mask, place in ((right, 2), (left, 4)):
        found = loss._pooled({"last_hidden_state": states}, {"attention_mask": mask}, "student")
        assert torch.equal(found, states[:, place])


def test_what_cannot_be_pooled_is_refused(tmp_path):
    rows = Rows(text(lambda g, ids: ids[0] % 3)())
    args, stages = arguments(tmp_path), [Stage("embed", "1 steps", loss=EmbeddingCosine())]
    with pytest.raises(ValueError, match=r"returned no last_hidden_state.*AutoModel"):
        StagedTrainer(
            tiny.bert(), args, train_dataset=rows, data_collator=Pad(), teacher=tiny.bert(1), stages=stages
        ).train()
    with pytest.raises(ValueError, match="student's embeddings have 32 numbers, the teacher's 64"):
        StagedTrainer(encoder(0), args, train_dataset=rows, teacher=encoder(1, hidden_size=64), stages=stages).plan()
    with pytest.raises(ValueError, match="pooling: expected 'mean'"):
        EmbeddingCosine("max")
    decoder = [Stage("embed", "1 steps", loss=EmbeddingCosine("pooler"))]
    plain = Rows([{k: row[k] for k in ("input_ids", "attention_mask")} for row in rows.rows])
    with pytest.raises(ValueError, match="returned no pooler_output"):
        StagedTrainer(
            LlamaModel(tiny.llama_config()), args, train_dataset=plain, data_collator=Pad(),
            teacher=LlamaModel(tiny.llama_config()), stages=decoder,
        ).train()  # fmt: skip


def test_evaluation_gathers_no_hidden_states(tmp_path):
    model = tiny.bert(output_hidden_states=True, output_attentions=False)
    rows = Rows(text(lambda g, ids: ids[0] % 3)())
    seen = []

    def shapes(prediction):
        seen.append(prediction.predictions)
        return {}

    StagedTrainer(
        model, arguments(tmp_path, eval_strategy="epoch"), train_dataset=rows, eval_dataset=rows, data_collator=Pad(),
        compute_metrics=shapes, stages=[Stage("a", "1 epochs")],
    ).train()  # fmt: skip
    assert [getattr(found, "shape", "several outputs") for found in seen] == [(8, 3)] * len(seen)
