"""What cannot work is refused before the first step, with the place and the cause; what breaks later names the term."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.gates import Plateau
from hf_stages.losses import Loss
from hf_stages.schedules import Fresh, Resume
from hf_stages.transforms import Freeze
from tests.support import tiny
from tests.support.runs import Agree, staged


@dataclass(frozen=True)
class Hidden(Loss):
    needs = frozenset({"hidden"})


BAD = {
    "unknown argument": (
        [Stage("a", "2 steps", args={"learning_rat": 1})],
        r"TrainingArguments has no 'learning_rat'; did you mean 'learning_rate'",
    ),
    "refused argument": (
        [Stage("a", "2 steps", args={"seed": 1})],
        r"stage 'a': args.seed: 'seed' cannot differ by stage: a stage's seed comes from",
    ),
    "warmup": (
        [Stage("a", "2 steps", schedule=Fresh(warmup=5))],
        r"stage 'a': schedule: a warmup of 5 steps is longer than the stage \(2 steps\)",
    ),
    "resume first": ([Stage("a", "2 steps", schedule=Resume())], r"stage 'a': schedule: Resume\(\) needs a parent"),
    "pattern": (
        [Stage("a", "2 steps"), Stage("b", "2 steps", transforms=[Freeze("layer.9")])],
        r"stage 'b': transforms\[0\] Freeze: .*'layer.9' matches nothing",
    ),
    "shape": ([Stage("a", "2 steps", schedule=Fresh(shape="reduce_lr_on_plateau"))], r"no function of progress"),
    "teacher missing": (
        [Stage("a", "2 steps", loss=Agree())],
        r"stage 'a': teacher: its loss compares with a teacher, but there is none",
    ),
    "teacher unused": ([Stage("a", "2 steps", teacher="stage:b")], r"stage 'a': teacher: given, but no loss"),
    "teacher later": (
        [Stage("a", "2 steps", loss=Agree(), teacher="stage:b"), Stage("b", "2 steps")],
        r"expected a model, 'base' or an earlier stage",
    ),
    "empty": (
        [Stage("a", "2 steps", train_dataset=tiny.lm_data(0))],
        r"stage 'a': train_dataset: expected at least one example",
    ),
    "stream epochs": (
        [Stage("a", "2 epochs", train_dataset=tiny.lm_data(4).to_iterable_dataset())],
        r"stage 'a': until: '2 epochs' on a stream without a length",
    ),
    "no batch": (
        [Stage("a", "2 epochs", train_dataset=tiny.lm_data(3), args={"dataloader_drop_last": True})],
        r"3 examples give no batch of 4",
    ),
    "unmeasured gate": (
        [Stage("a", "2 steps", gates=[Plateau("eval_loss")])],
        r"stage 'a': gates\[0\] Plateau: eval_loss is never measured",
    ),
    "no eval data": (
        [Stage("a", "2 steps", args={"eval_strategy": "steps"})],
        r"stage 'a': eval_dataset: eval_strategy='steps', but there is none",
    ),
    "capture": (
        [Stage("a", "2 steps", loss=Hidden())],
        r"stage 'a': loss Hidden: need 'hidden': expected loss, logits",
    ),
    "unknown source": ([Stage("a", "2 steps", train_dataset="nope")], r"no source is called 'nope'"),
}


@pytest.mark.parametrize(("stages", "message"), BAD.values(), ids=BAD.keys())
def test_bad_recipes_fail_before_the_first_step(tmp_path, stages, message):
    trainer = staged(tmp_path, stages)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.iterdir())


def test_what_stages_make_themselves_is_refused(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="optimizers: each stage makes its own"):
        staged(tmp_path, [Stage("a", "1 steps")], optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="auto_find_batch_size"):
        staged(tmp_path, [Stage("a", "1 steps")], args={"auto_find_batch_size": True}).train()
    with pytest.raises(ValueError, match="teacher without stages"):
        StagedTrainer(tiny.llama(), TrainingArguments(str(tmp_path), use_cpu=True), teacher=tiny.llama())


def test_a_batch_without_labels_is_refused(tmp_path):
    def without_labels(rows):  # the rows have them, and a collator of one's own loses them
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    with pytest.raises(ValueError, match="TaskLoss: the batch has no labels"):
        staged(tmp_path, [Stage("a", "1 steps")], data_collator=without_labels).train()


def test_nan_stops_the_run_and_names_the_term(tmp_path):
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"loss TaskLoss: its value is nan"):
        staged(tmp_path, [Stage("a", "2 steps")], model=model).train()
