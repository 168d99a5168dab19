"""A domain is measured with the collator, metrics and loss of its own stage, within another stage and after it."""

from __future__ import annotations

import json

import pytest
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.data import Preferences
from hf_stages.gates import Forgetting
from hf_stages.losses import DPO
from tests.support import tiny
from tests.workers.cases import Pad

PAIRS = [
    {"prompt": "one and one is ", "chosen": "two", "rejected": "eleven"},
    {"prompt": "say hi: ", "chosen": "hi", "rejected": "no"},
    {"prompt": "", "chosen": "yes", "rejected": "a much longer answer than the other one"},
    {"prompt": "again ", "chosen": "and again", "rejected": "never"},
]


def seen(name):
    def metrics(prediction):
        return {"seen_by": name, "rows": len(prediction.label_ids)}

    return metrics


@pytest.mark.parametrize("own", [{}, {"pairs": PAIRS}], ids=["nothing of its own", "pairs"])
def test_a_gate_measures_an_earlier_domain_in_a_stage_of_other_rows(own, tmp_path):
    """The text that the first stage learned, watched in one whose collator takes pairs and whose loss compares them."""
    text = tiny.lm_data(8, 12)
    stages = [
        Stage("text", "2 steps", train_dataset=text, eval_dataset={"text": text}, compute_metrics=seen(1)),
        Stage(
            "prefer",
            "3 steps",
            train_dataset=PAIRS,
            data_collator=Preferences(),
            eval_dataset=own,
            loss=DPO(),
            teacher="stage:text",
            compute_metrics=seen(2),
            args={"eval_strategy": "steps", "eval_steps": 1},
            gates=[Forgetting("0%", of=["text"])],
        ),
    ]
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, save_strategy="no",
        learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=1,
    )  # fmt: skip
    model = tiny.llama(vocab_size=259, max_position_embeddings=128)
    trainer = StagedTrainer(model, args, stages=stages, processing_class=tiny.tokenizer(), data_collator=Pad())
    trainer.train()
    first, second = (json.loads((tmp_path / f / "stage.json").read_text()) for f in ("01-text", "02-prefer"))
    logs = [log for log in trainer.state.log_history if log["stage"] == 2]
    losses = [log["eval_text_loss"] for log in logs if "eval_text_loss" in log]
    assert len(losses) == 3
    before = [log["start_text_loss"] for log in logs if "start_text_loss" in log]
    assert before == [pytest.approx(first["domains"]["text"]["loss"], rel=1e-6)]  # the same model, the same rows
    assert second["domains"]["text"]["loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert {log["eval_text_seen_by"] for log in logs if "eval_text_seen_by" in log} == {1}
    assert not any(key.startswith("eval_text_loss_") or key == "eval_text_DPO" for log in logs for key in log)
    if own:
        assert {log["eval_pairs_seen_by"] for log in logs if "eval_pairs_seen_by" in log} == {2}
        assert any("eval_pairs_loss_DPO" in log or "eval_pairs_DPO" in log for log in logs)
    assert isinstance(trainer.data_collator, Pad)
