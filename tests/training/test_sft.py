"""TRL's SFTTrainer under the mixin: models built anew, teachers, raw data of stages, packing, counters."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.core.stops import RunInterrupted
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss
from hf_stages.training.preparing.prepared_data import PreparedData
from hf_stages.training.trainer import StagedMixin
from hf_stages.transforms import AddLora, ReduceLayers
from tests.support import tiny

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

TOKENIZER = tiny.tokenizer()
PROSE = ["a stage is a stretch of training", "one model", "what is learned first stays", "two and two"] * 4
TALK = {"prompt": ["two and two?", "and what is one and one?"] * 8, "completion": [" four", " two, as always"] * 8}
QUIET = {
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "bf16": False,
}


class StagedSFT(StagedMixin, trl.SFTTrainer):
    pass


class Tokenized(StagedTrainer):
    """Without a preparation of its own."""


def prose() -> Dataset:
    return Dataset.from_dict({"text": PROSE})


def talk() -> Dataset:
    return Dataset.from_dict(TALK)


def arguments(out, **changes):
    given = {"per_device_train_batch_size": 4, "max_length": 48, "learning_rate": 1e-3, **QUIET, **changes}
    return trl.SFTConfig(str(out), **given)


def model(seed=0, **changes):
    return tiny.llama(seed, vocab_size=len(TOKENIZER), **changes)


def staged(out, *stages, kind=StagedSFT, student=None, data=None, args=None, **kwargs):
    args = arguments(out) if args is None else args
    student = model() if student is None else student
    data = prose() if data is None else data
    return kind(student, args, train_dataset=data, processing_class=tiny.tokenizer(), stages=list(stages), **kwargs)


def logged(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


def apart(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return max((mine[name].float() - theirs[name].float()).abs().max().item() for name in mine)


# ---- one run under both trainers ----------------------------------------------------------------------------------------


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


def test_metrics_of_logits_beside_a_teacher(tmp_path):
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


# ---- models built anew ------------------------------------------------------------------------------------------------


def test_branches_of_a_stage_and_of_the_initial_model(tmp_path):
    """And a second ``train()``, which begins with the model as it was given."""
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", parents="a"), Stage("c", "1 steps", parents="a")]
    trainer = staged(tmp_path / "a", *stages, Stage("d", "1 steps", parents=()))
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 4
    assert {"trl", "sft"} <= set(trainer.model.model_tags)
    again = staged(tmp_path / "b", *stages, Stage("d", "1 steps", parents=()))
    again.train()
    assert apart(trainer.model, again.model) == 0


def test_a_second_run_of_one_trainer(tmp_path):
    trainer = staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 steps", parents=()))
    trainer.train()
    first, tokens = {name: w.clone() for name, w in trainer.model.state_dict().items()}, logged(trainer, "num_tokens")
    for folder in ("01-a", "02-b"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    trainer.train()
    assert all(torch.equal(first[name], w) for name, w in trainer.model.state_dict().items())
    assert logged(trainer, "num_tokens") == tokens


def test_a_transform_that_builds_a_new_model(tmp_path):
    trainer = staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 steps", transforms=[ReduceLayers([1])]))
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 2


def test_an_adapter_and_its_base_as_the_teacher(tmp_path):
    pytest.importorskip("peft")
    stages = [
        Stage("a", "1 steps"),
        Stage("b", "2 steps", transforms=[AddLora(r=2)], loss=TaskLoss() + LogitKL(), teacher="base"),
    ]
    trainer = staged(tmp_path, *stages)
    trainer.train()
    assert len(logged(trainer, "mean_token_accuracy")) == 3


def test_what_no_one_can_replace_again_is_refused(tmp_path):
    student = model()
    student.forward = lambda *args, **kwargs: type(student).forward(student, *args, **kwargs)
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", parents=())]
    with pytest.raises(ValueError, match=r"stage 'b': model: `forward` was replaced .* override prepare_model"):
        staged(tmp_path, *stages, student=student, kind=Tokenized, data=tiny.lm_data(4)).plan()


# ---- data ---------------------------------------------------------------------------------------------------------------


def test_stages_bring_raw_text(tmp_path):
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


def test_a_mixture_a_stream_and_names_of_raw_text(tmp_path):
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


def test_conversations_alone_where_answers_alone_are_trained(tmp_path):
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
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
        data.of_stage(Dataset.from_list([row]), "b", "stage 'b': train_dataset", evaluation=False)


def test_a_hook_of_ones_own(tmp_path):
    class Upper(StagedSFT):
        def stage_dataset(self, dataset, stage):
            if "text" in dataset.column_names:
                dataset = dataset.map(lambda row: {"text": row["text"][:4]})
            return super().stage_dataset(dataset, stage)

    short = staged(tmp_path, Stage("a", "1 steps"), Stage("b", "1 epochs", train_dataset=prose()), kind=Upper)
    assert short.plan()["b"].size.tokens_per_example <= 5


# ---- resuming ---------------------------------------------------------------------------------------------------------


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


# ---- TRL's other trainers -----------------------------------------------------------------------------------------------


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
def test_other_trainers_of_pairs(tmp_path, kind):
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
