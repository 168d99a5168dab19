"""Stages that distil: checkpointed activations, autocast, compilation, hooks and the losses' own weights."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.core.stops import RunInterrupted
from hf_stages.losses import AttentionKL, AttentionMSE, AttentionRelation, HiddenMSE, LogitKL, TaskLoss
from hf_stages.models.attention_scores import scores
from hf_stages.models.signals import Attention
from hf_stages.transforms import Freeze
from tests.losses import outside_trainer
from tests.support import tiny
from tests.workers.cases import Gradients, Pad, Rows, apart, arguments, text, uneven

FEATURES = HiddenMSE() + AttentionMSE() + AttentionRelation()
PROJECTED = TaskLoss() + HiddenMSE(project="each")


def _trainer(out, stages, student=None, teacher=None, callbacks=(), **changes):
    args = arguments(out, **{"per_device_train_batch_size": 4, **changes})
    student = student if student is not None else outside_trainer.two(tiny.llama)[0]
    teacher = teacher if teacher is not None else outside_trainer.two(tiny.llama)[1]
    rows = Rows(text(uneven)())
    return StagedTrainer(
        student,
        args,
        train_dataset=rows,
        data_collator=Pad(),
        stages=stages,
        teacher=teacher,
        callbacks=list(callbacks),
    )


def _gradients(out, loss, **changes):
    seen_by = Gradients()
    _trainer(out, [Stage("one", "1 steps", loss=loss)], callbacks=[seen_by], **changes).train()
    return seen_by.found


HOW = {
    "checkpointed": ({"activation_checkpointing": True}, 1e-6),
    "every other": ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}}, 1e-6),
    "autocast": ({"bf16": True}, 0.1),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, 1e-4),
}


LOSSES = {"features": FEATURES, "projected": PROJECTED, "logits": LogitKL() + AttentionKL()}
RUNS = [
    pytest.param(how, loss, marks=[pytest.mark.slow] if how == "compiled" else [], id=f"{how}-{name}")
    for how in HOW
    for name, loss in LOSSES.items()
]


@pytest.mark.parametrize(("how", "loss"), RUNS)
def test_gradient_is_that_of_a_plain_run(how, loss, tmp_path):
    changes, near = HOW[how]
    plain = _gradients(tmp_path / "plain", loss)
    found = _gradients(tmp_path / "other", loss, **changes)
    found = {name.replace("_orig_mod.", ""): grad for name, grad in found.items()}
    if how == "autocast":
        mine, theirs = (torch.cat([g.flatten() for _, g in sorted(x.items())]) for x in (found, plain))
        assert (mine - theirs).norm() < near * theirs.norm()
    else:
        if how == "compiled":  # AOT autograd gives zeros to what takes no part, such as an idle head
            plain |= {name: torch.zeros_like(grad) for name, grad in found.items() if name not in plain}
        assert apart(plain, found) < near


def test_scores_stay_exact_under_autocast():
    query, key = (torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    attention = Attention(query, key, key, 0.35, None, False)
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(attention), scores(attention, minus=torch.ones(1, 2, 5, 5)) + 1
    for values in found:
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, query @ key.transpose(2, 3) * 0.35)


def test_reentrant_checkpointing_is_refused(tmp_path):
    for prefix in ("activation", "gradient"):
        more = {f"{prefix}_checkpointing": True, f"{prefix}_checkpointing_kwargs": {"use_reentrant": True}}
        with pytest.raises(ValueError, match=r"hidden\.0 cannot be captured under reentrant"):
            _trainer(tmp_path, [Stage("one", "1 steps", loss=HiddenMSE())], **more).plan()


@pytest.mark.slow
def test_each_compiled_stage_captures_its_own_layers(tmp_path):
    stages = [
        Stage("first", "2 steps", loss=HiddenMSE({1: 1}) + AttentionMSE({1: 2})),
        Stage(
            "second",
            "2 steps",
            transforms=[Freeze(["model.embed_tokens"])],
            loss=HiddenMSE({2: 3}) + AttentionKL({2: 4}),
        ),
        Stage("third", "1 steps", loss=LogitKL() + HiddenMSE({1: 1}, project="each")),
    ]
    ends = []
    for name, changes in {"plain": {}, "compiled": HOW["compiled"][0]}.items():
        trainer = _trainer(tmp_path / name, stages, **changes)
        trainer.train()
        ends.append(load_file(tmp_path / name / "03-third" / "model.safetensors"))
    assert apart(*ends) < 1e-4


# ---- hooks -----------------------------------------------------------------------------------------------------------


def _marks(model):
    """Everything that a capture could have left on a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    found = [(n, len(getattr(m, h))) for n, m in model.named_modules() for h in hooks if getattr(m, h)]
    configs = {n: id(m.config) for n, m in model.named_modules() if hasattr(m, "config")}
    # What a later run with the trained model begins as stays.
    kept = {"_hf_stages_origin"}
    taps = [n for n, m in model.named_modules() if any("hf_stages" in key for key in m.__dict__.keys() - kept)]
    return found, configs, taps, sorted(model.state_dict())


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("in the middle")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_models(fails, tmp_path):
    student, teacher = outside_trainer.two(tiny.llama)
    before = _marks(student), _marks(teacher)
    stage = Stage("one", "2 steps", loss=FEATURES + PROJECTED + LogitKL())
    trainer = _trainer(tmp_path, [stage], student, teacher, [Fails()] if fails else [])
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            trainer.train()
    else:
        trainer.train()
    assert (_marks(student), _marks(teacher)) == before


def test_nothing_is_left_where_a_stage_cannot_begin(monkeypatch, tmp_path):
    def cut(*_):
        raise KeyboardInterrupt

    student, teacher = outside_trainer.two(tiny.llama)
    before = _marks(student), _marks(teacher)
    monkeypatch.setattr("hf_stages.training.stage.stage_start.try_teacher", cut)
    with pytest.raises(KeyboardInterrupt):
        _trainer(tmp_path, [Stage("one", "2 steps", loss=FEATURES + PROJECTED + LogitKL())], student, teacher).train()
    assert (_marks(student), _marks(teacher)) == before


def test_nothing_is_left_where_a_capture_cannot_be_set():
    student = tiny.llama()
    before = _marks(student)
    with pytest.raises(IndexError):
        outside_trainer.value(_Wrong(), student, tiny.llama(1), outside_trainer.text())
    assert _marks(student) == before


class _Wrong(HiddenMSE):
    def for_models(self, student, teacher):
        found = super().for_models(student, teacher)
        object.__setattr__(found, "needs", frozenset({"attention.1", "hidden.9"}))
        return found


def test_evaluation_inside_a_stage_sees_whole_logits(tmp_path):
    shapes = []

    def metric(prediction):
        shapes.append(prediction.predictions.shape)
        return {"score": 0.0}

    stage = Stage(
        "one",
        "2 steps",
        loss=FEATURES,
        eval_dataset=Rows(text(uneven)()),
        compute_metrics=metric,
        args={"eval_strategy": "steps", "eval_steps": 1},
    )
    trainer = _trainer(tmp_path, [stage], per_device_eval_batch_size=8)
    trainer.train()
    assert shapes
    assert set(shapes) == {(8, 11, tiny.VOCAB)}


def test_models_that_return_tuples(tmp_path):
    ends = []
    for name, returns in {"dict": True, "tuple": False}.items():
        student, teacher = tiny.bert(return_dict=returns), tiny.bert(1, return_dict=returns)
        args = arguments(tmp_path / name, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1)
        stages = [Stage("one", "2 steps", loss=LogitKL() + TaskLoss())]
        data = {"train_dataset": tiny.class_data(8), "eval_dataset": tiny.class_data(8)}
        trainer = StagedTrainer(student, args, stages=stages, teacher=teacher, **data)
        trainer.train()
        ends.append([log["eval_LogitKL"] for log in trainer.state.log_history if "eval_LogitKL" in log])
    assert len(ends[0]) > 0
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


# ---- the losses' own weights -----------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    def __init__(self):
        self.maps, self.norms, self.optimized, self.stop_at, self.trainer = [], [], [], None, None

    def _own(self, model):
        return {n: p for n, p in model.named_parameters() if "hf_stages_losses" in n}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.optimized.append(sum(id(p) in held for p in self._own(model).values()))
        self.norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.maps.append({n: p.detach().clone() for n, p in self._own(model).items()})
        if state.global_step == self.stop_at:
            self.trainer.request_stop("cut")


def _watched(out, stop_at=None, **changes):
    watch = Watch()
    stages = [
        Stage("one", "4 steps", loss=TaskLoss() + 100 * HiddenMSE(project="each")),
        Stage("two", "2 steps", loss=TaskLoss()),
    ]
    teacher = tiny.llama(1, num_hidden_layers=4, hidden_size=48)
    more = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 0.01, **changes}
    trainer = _trainer(out, stages, tiny.llama(attention_dropout=0.1), teacher, [watch], **more)
    watch.trainer, watch.stop_at = trainer, stop_at
    return trainer, watch


def test_projections_are_trained_clipped_checkpointed_and_saved_nowhere(tmp_path):
    plain = set(tiny.llama().state_dict())
    trainer, watch = _watched(tmp_path / "whole", save_strategy="steps", save_steps=1)
    checkpoints = {}

    class Keys(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            with safe_open(f"{args.output_dir}/checkpoint-{state.global_step}/model.safetensors", "pt") as file:
                checkpoints[state.global_step] = set(file.keys())

    trainer.add_callback(Keys())
    trainer.train()
    assert watch.optimized == [6] * 4 + [0] * 2
    assert all(norm <= 0.0101 for norm in watch.norms)
    first, second = watch.maps[0], watch.maps[1]
    assert first.keys() == second.keys() != set()
    assert not any(torch.equal(first[n], second[n]) for n in first)
    assert watch.maps[-1] == {}
    saved = {key for folder in tmp_path.glob("whole/0*") for key in load_file(folder / "model.safetensors")}
    assert saved == plain
    assert checkpoints
    assert all(keys == plain for keys in checkpoints.values())
    assert not [
        key for f in tmp_path.glob("whole/0*/training_state/*.safetensors") for key in load_file(f) if "hf_st" in key
    ]


def test_cut_and_resumed_with_projections_is_never_cut(tmp_path):
    whole, watch = _watched(tmp_path / "whole")
    whole.train()
    cut, _ = _watched(tmp_path / "cut", stop_at=2)
    with pytest.raises(RunInterrupted):
        cut.train()
    resumed, again = _watched(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert len(again.maps) == 4
    for mine, theirs in zip(again.maps, watch.maps[2:], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    for name in ("01-one", "02-two"):
        mine, theirs = (load_file(tmp_path / run / name / "model.safetensors") for run in ("cut", "whole"))
        assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
