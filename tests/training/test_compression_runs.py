"""What compressing runs are asked for beside their stages: chains of teachers, and tasks of regression."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForSequenceClassification, TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.evaluation.metrics import Metrics
from hf_stages.losses import HiddenMSE, LogitKL, LogitMSE
from hf_stages.recipes import bitdistill, multi_stage, single_stage
from hf_stages.transforms import Binarize, SplitTernary, Ternarize
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


def trainer(out, model, stages, teacher=None, *, changes=None, **data):
    args = TrainingArguments(
        str(out),
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        logging_steps=1,
        optim="adamw_torch_fused",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **(changes or {})},
    )
    return StagedTrainer(model, args, stages=stages, teacher=teacher, **data)


class Teachers(TrainerCallback):
    """Who taught each update."""

    def __init__(self):
        self.run, self.seen = None, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.run.stage_teacher)


def test_each_student_may_teach_the_next(tmp_path):
    """Full precision teaches the ternary model, which teaches the binary one (BiT); a taught model is not trained."""
    taught = {"loss": HiddenMSE() + LogitKL()}
    stages = [
        Stage("full", "2 steps"),
        Stage("ternary", "2 steps", transforms=[Ternarize()], teacher="stage:full", **taught),
        Stage("binary", "2 steps", transforms=[Binarize()], teacher="stage:ternary", **taught),
    ]
    run = trainer(tmp_path, tiny.bert(), stages, train_dataset=tiny.class_data())
    teachers = Teachers()
    run.add_callback(teachers)
    teachers.run = run
    run.train()
    saved = StagedTrainer.from_stage(tmp_path / "02-ternary").model
    used = teachers.seen[-1].model
    assert type(used.bert.pooler.dense).__name__ == "TernaryLinear"
    assert torch.equal(used.bert.pooler.dense.weight_latent, saved.bert.pooler.dense.weight_latent)
    assert type(run.model.bert.pooler.dense).__name__ == "BinaryLinear"


def scores(rows: int = 32):
    data = tiny.class_data(rows)
    return data.remove_columns("labels").add_column("labels", [row / rows for row in range(rows)])


@pytest.mark.parametrize("make", [multi_stage, single_stage])
def test_a_regression_learns_in_stages_of_logits(tmp_path, make):
    """A softmax over one output is 1 whatever it is (BinaryBERT's second stage on STS-B learns nothing)."""
    teacher, student = (tiny.bert(seed, num_labels=1, problem_type="regression") for seed in (0, 1))
    with pytest.raises(ValueError, match="use LogitMSE"):
        trainer(tmp_path, student, make("8 steps").stages, teacher, train_dataset=scores()).plan()
    run = trainer(tmp_path, student, make("8 steps", logits=LogitMSE()).stages, teacher, train_dataset=scores())
    run.train()
    last = run.recipe.stages[-1].name
    logged = [log for log in run.state.log_history if "loss" in log][-1]
    assert logged.get("loss_LogitMSE", logged["loss"]) > 0
    assert (tmp_path / run.plan()[last].folder).is_dir()


def test_every_box_in_one_run_of_half_the_width(tmp_path):
    """The corpus, the head, half the heads (which no BERT's config can say), two bits, the split, one bit."""
    data = tiny.class_data(16)
    body = tiny.bert().bert
    general = {"general": "1 steps", "corpus": data.remove_columns("labels"), "general_teacher": body}
    recipe = multi_stage("4 steps", width=0.5, reduce=[2], set_task=["a", "b", "c"], **general)
    args = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    given = {"train_dataset": data, "eval_dataset": data, "compute_metrics": Metrics("accuracy")}
    run = trainer(tmp_path, copy.deepcopy(body), recipe.stages, tiny.bert(), changes={**args, **best}, **given)
    run.train()
    ids = torch.tensor(data[:2]["input_ids"])
    last = StagedTrainer.from_stage(tmp_path / "05-binary-logits").model
    run.model.eval()
    assert torch.equal(last(ids).logits, run.model(ids).logits)
    assert type(last.bert.encoder.layer[0].attention.self.query).__name__ == "SplitLinear"
    assert last.bert.encoder.layer[0].attention.self.query.out_features == 16
    stages = [replace(stage, args={}) for stage in recipe.stages]
    again = trainer(tmp_path, copy.deepcopy(body), stages, tiny.bert(), changes={**args, **best}, **given)
    with pytest.raises(ValueError, match="load_best_model_at_end: expected something to evaluate on"):
        again.plan()


def test_a_decoder_becomes_a_ternary_classifier(tmp_path):
    """Pretraining goes on with text, where the task's labels cannot be scored."""
    data = tiny.class_data(16)
    config = copy.deepcopy(tiny.llama_config())
    config.num_labels = 3
    recipe = bitdistill("2 steps", pretrain="2 steps", corpus=tiny.lm_data(16), set_task=3)
    run = trainer(
        tmp_path, tiny.llama(), recipe.stages, LlamaForSequenceClassification(config), train_dataset=data,
        eval_dataset=data, compute_metrics=Metrics("accuracy"),
    )  # fmt: skip
    run.train()
    assert "eval_accuracy" in run.state.log_history[-1] or any("eval_accuracy" in log for log in run.state.log_history)
    assert type(run.model.model.layers[0].mlp.down_proj.linear).__name__ == "TernaryLinear"


def test_of_an_encoder_and_decoder_one_is_named(tmp_path):
    run = trainer(
        tmp_path, tiny.t5(), single_stage("2 steps", stack="decoder").stages, tiny.t5(1), train_dataset=tiny.lm_data(16)
    )
    run.train()
    assert (tmp_path / "01-binary").is_dir()


def test_a_strength_that_a_split_would_cut_short_is_refused(tmp_path):
    both = [Ternarize(strength=Linear(0, 1)), SplitTernary()]
    run = trainer(tmp_path, tiny.bert(), [Stage("both", "2 steps", transforms=both)], train_dataset=tiny.class_data(8))
    with pytest.raises(ValueError, match="SplitTernary splits before its first step; let SplitTernary begin the next"):
        run.plan()
