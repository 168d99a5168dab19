"""TRL's trainers under the mixin: models built anew, teachers, counters, a cut and its resume."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.core.stops import RunInterrupted
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss
from hf_stages.training.trainer import StagedMixin
from hf_stages.transforms import AddLora, ReduceLayers
from tests.support import tiny
from tests.support.sft import (
    PROSE,
    QUIET,
    TOKENIZER,
    apart,
    arguments,
    logged,
    model,
    staged,
    talk,
)

trl = pytest.importorskip("trl")


class Tokenized(StagedTrainer):
    """Without a preparation of its own."""


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    "loss",
    [LogitKL(), TaskLoss() + 2 * LogitKL(), TaskLoss() + 10 * HiddenMSE(), TaskLoss()],
    ids=["kl", "task+kl", "task+hidden", "task"],
)
def test_distillation_is_that_of_staged_trainer(tmp_path, loss, packing):
    """Weights, losses and what evaluation says of the teacher's terms."""
    teacher = {"teacher": model(1)} if loss != TaskLoss() else {}
    args = arguments(tmp_path / "a", packing=packing, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    held_out = Dataset.from_dict({"text": PROSE[:3]})
    own = staged(tmp_path / "a", Stage("a", "4 steps", loss=loss), args=args, eval_dataset=held_out, **teacher)
    data, held_out, collator = own.train_dataset, own.eval_dataset, own.data_collator
    own.train()
    teacher = {"teacher": model(1)} if teacher else {}
    plain = StagedTrainer(
        model(pad_token_id=TOKENIZER.pad_token_id),
        arguments(tmp_path / "b", packing=packing, gradient_accumulation_steps=2, per_device_train_batch_size=2),
        train_dataset=data,
        eval_dataset=held_out,
        data_collator=collator,
        processing_class=TOKENIZER,
        stages=[Stage("a", "4 steps", loss=loss)],
        **teacher,
    )
    plain.args.remove_unused_columns = False  # seq_lengths, which SFTTrainer keeps
    plain.train()
    assert apart(own.model, model()) > 1e-4
    assert (
        apart(own.model, plain.model) < 1e-4
    )  # a tenth of one step: the fused head rounds otherwise, and Adam shows it
    assert logged(own, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)
    mine, theirs = (json.loads((tmp_path / out / "01-a" / "stage.json").read_text())["metrics"] for out in "ab")
    for key in theirs.keys() - {key for key in theirs if "runtime" in key or "per_second" in key or key == "epoch"}:
        assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key


def test_a_feature_term_beside_the_task_moves_weights(tmp_path):
    """SFTTrainer runs a second forward without a graph for outputs; features are of the first."""
    alone = staged(tmp_path / "a", Stage("a", "2 steps", loss=TaskLoss()))
    alone.train()
    both = staged(tmp_path / "b", Stage("a", "2 steps", loss=TaskLoss() + 1000 * HiddenMSE()), teacher=model(1))
    both.train()
    assert apart(alone.model, both.model) > 1e-4


def test_logits_beside_the_task_train_the_body(tmp_path):
    """Not the head alone, which is what deferred logits of a forward without a graph would train."""
    trainer = staged(tmp_path, Stage("a", "1 steps", loss=1e-9 * TaskLoss() + LogitKL()), teacher=model(1))
    trainer.train()
    fresh = model().state_dict()
    moved = [n for n, w in trainer.model.state_dict().items() if not torch.equal(w, fresh[n])]
    assert len(moved) == len(fresh)


def test_a_batch_without_a_label_counts_as_nothing(tmp_path):
    rows = Dataset.from_list(
        [{"input_ids": [5, 6, 7, 8], "labels": [-100] * 4 if i % 2 else [5, 6, 7, 8]} for i in range(4)]
    )
    args = arguments(
        tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2, train_sampling_strategy="sequential"
    )
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = staged(tmp_path, Stage("a", "2 steps"), args=args, data=rows)
    trainer.train()
    assert all(loss > 0 for loss in logged(trainer, "loss"))


@pytest.mark.parametrize("changes", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}], ids=["dft", "smoothing"])
def test_every_loss_of_its_own_stands_beside_a_teacher(tmp_path, changes):
    """And is the same for 8 rows as for 4 accumulated batches of 2."""
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        out = tmp_path / str(batch)
        args = arguments(
            out,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,
            **changes,
        )
        trainer = staged(out, Stage("a", "1 steps", loss=TaskLoss() + LogitKL()), args=args, teacher=model(1))
        trainer.train()
        found.append(trainer.model)
    assert apart(found[0], model()) > 1e-3
    assert apart(*found) < 1e-5


def test_metrics_see_the_students_logits_beside_a_teacher(tmp_path):
    def metrics(prediction):
        return {"rows": float(len(prediction.predictions)), "classes": float(prediction.predictions.shape[-1])}

    held = Dataset.from_dict({"text": PROSE[:3]})
    trainer = staged(
        tmp_path, Stage("a", "1 steps", loss=LogitKL()), teacher=model(1), eval_dataset=held, compute_metrics=metrics
    )
    trainer.train()
    found = json.loads((tmp_path / "01-a" / "stage.json").read_text())["metrics"]
    assert (found["eval_rows"], found["eval_classes"]) == (3, len(TOKENIZER))
    assert 0 < found["eval_LogitKL"] < 1


def test_branches_begin_where_they_say_in_every_run(tmp_path):
    """And a second ``train()``, which begins with the model as it was given."""
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", parents="a"), Stage("c", "1 steps", parents="a")]
    trainer = staged(tmp_path / "a", *stages, Stage("d", "1 steps", parents=()))
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 4
    assert {"trl", "sft"} <= set(trainer.model.model_tags)
    again = staged(tmp_path / "b", *stages, Stage("d", "1 steps", parents=()))
    again.train()
    assert apart(trainer.model, again.model) == 0


def test_a_second_run_of_one_trainer_equals_the_first(tmp_path):
    trainer = staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 steps", parents=()))
    trainer.train()
    first, tokens = {name: w.clone() for name, w in trainer.model.state_dict().items()}, logged(trainer, "num_tokens")
    for folder in ("01-a", "02-b"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    trainer.train()
    assert all(torch.equal(first[name], w) for name, w in trainer.model.state_dict().items())
    assert logged(trainer, "num_tokens") == tokens


def test_a_transform_may_build_a_new_model(tmp_path):
    trainer = staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 steps", transforms=[ReduceLayers([1])]))
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 2


def test_an_adapter_may_learn_from_its_own_base(tmp_path):
    pytest.importorskip("peft")
    stages = [
        Stage("a", "1 steps"),
        Stage("b", "2 steps", transforms=[AddLora(r=2)], loss=TaskLoss() + LogitKL(), teacher="base"),
    ]
    trainer = staged(tmp_path, *stages)
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 3


def test_a_replaced_forward_that_a_new_model_would_lose_is_refused(tmp_path):
    student = model()
    student.forward = lambda *args, **kwargs: type(student).forward(student, *args, **kwargs)
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", parents=())]
    with pytest.raises(ValueError, match=r"stage 'b': model: `forward` was replaced .* override prepare_model"):
        staged(tmp_path, *stages, student=student, kind=Tokenized, data=tiny.lm_data(4)).plan()


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_counts_go_on_after_a_cut(tmp_path, cut):
    """Tokens and the means between two logs: inside a stage, at a boundary, in the second stage."""
    changes = {"logging_steps": 2, "save_strategy": "steps", "save_steps": 1}
    stages = [Stage("a", "3 steps"), Stage("b", "4 steps", train_dataset=talk())]
    whole = staged(tmp_path / "a", *stages, args=arguments(tmp_path / "a", **changes))
    whole.train()

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == cut:
                first.request_stop("cut")

    first = staged(tmp_path / "b", *stages, args=arguments(tmp_path / "b", **changes), callbacks=[Cut()])
    with pytest.raises(RunInterrupted):
        first.train()
    second = staged(tmp_path / "b", *stages, args=arguments(tmp_path / "b", **changes))
    second.train(resume_from_checkpoint=True)
    for key in ("num_tokens", "mean_token_accuracy", "entropy", "loss"):
        assert logged(second, key) == logged(whole, key), key
    assert apart(whole.model, second.model) == 0


class StagedDPO(StagedMixin, trl.DPOTrainer):
    pass


class StagedReward(StagedMixin, trl.RewardTrainer):
    pass


def pairs(rows=8):
    return Dataset.from_dict(
        {"prompt": ["a?", "and b?"] * rows, "chosen": [" yes", " of course"] * rows, "rejected": [" no"] * 2 * rows}
    )


def reward_model():
    config = LlamaConfig(**{**tiny.llama_config().to_dict(), "vocab_size": len(TOKENIZER), "num_labels": 1})
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_trainers_of_pairs_give_the_same_however_a_batch_is_cut(tmp_path, kind):
    """A stage of raw pairs and a branch; 4 rows at once are 2 accumulated batches of 2."""
    found = []
    for batch, accumulation in ((4, 1), (2, 2)):
        out, how = (
            tmp_path / str(batch),
            {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation},
        )
        stages = [Stage("a", "1 steps"), Stage("b", "1 steps", train_dataset=pairs(2), parents=())]
        own = {"train_dataset": pairs(), "processing_class": tiny.tokenizer(), "stages": stages}
        how |= {**QUIET, "optim": "sgd", "learning_rate": 1.0}
        if kind == "dpo":
            trainer = StagedDPO(model(), ref_model=model(1), args=trl.DPOConfig(str(out), **how), **own)
        else:
            trainer = StagedReward(reward_model(), args=trl.RewardConfig(str(out), **how), **own)
        trainer.train()
        assert len(logged(trainer, "loss")) == 2
        found.append(trainer.model)
    assert apart(found[0], model() if kind == "dpo" else reward_model()) > 1e-4
    assert apart(*found) < 1e-5
