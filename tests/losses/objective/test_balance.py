"""Running norms equal a few lines of Python, gradient norms those of ``backward()``."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerCallback

from hf_stages import Stage, StagedTrainer
from hf_stages.core.batch import Batch
from hf_stages.core.stops import RunInterrupted
from hf_stages.losses import Balanced, HiddenMSE, LogitKL, TaskLoss
from hf_stages.losses.objective.balance import Balance, gradient_norms
from hf_stages.losses.objective.student_forwards import TaskForward
from hf_stages.losses.objective.terms import groups_of, terms_of
from tests.workers.cases import Pad, Rows, arguments, bert, text

THREE = TaskLoss() + TaskLoss() + TaskLoss()


def balance(loss):
    return Balance(terms_of(loss), groups_of(loss))


def running(values, momentum):
    """The mean of what was measured, later values weighing more: 1, m, m^2, ... backwards."""
    seen = [v for v in values if 0 < v < float("inf")]
    weights = [momentum**age for age in range(len(seen))][::-1]
    return sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights) if seen else None


@pytest.mark.parametrize("momentum", [0, 0.5, 0.99])
def test_scales_bring_each_running_norm_to_the_first(momentum):
    ours = balance(TaskLoss() + Balanced(THREE, momentum=momentum))
    assert ours.scales().tolist() == [1.0] * 4
    nan, inf = float("nan"), float("inf")
    norms = [[7, 2, 1e5, 0], [7, 3, 2e5, 0], [0, nan, inf, nan], [1, 0, 3e5, 1e-6], [nan, 5, 1e5, 0]]
    for step, row in enumerate(norms):
        ours.update(torch.tensor(row))
        means = [running(column, momentum) for column in list(zip(*norms[: step + 1], strict=True))[1:]]
        expected = [1.0, *(min(means[0] / mean, 100.0) if mean else 1.0 for mean in means)]  # 100: the limit
        assert ours.scales().tolist() == pytest.approx(expected, rel=1e-6)


def test_the_first_measurement_counts_whole():
    ours = balance(Balanced(THREE, momentum=0.999))
    ours.update(torch.tensor([2.0, 8.0, 0.5]))
    assert ours.norms().tolist() == pytest.approx([2.0, 8.0, 0.5])
    assert ours.scales().tolist() == pytest.approx([1.0, 0.25, 4.0])


def test_without_a_reference_nothing_is_scaled():
    ours = balance(Balanced(THREE))
    ours.update(torch.tensor([0.0, 8.0, 0.5]))
    assert ours.scales().tolist() == [1.0] * 3


def test_groups_are_balanced_apart_from_each_other():
    ours = balance(Balanced(TaskLoss() + TaskLoss(), momentum=0) + Balanced(TaskLoss() + TaskLoss(), momentum=0.9))
    for norms in ([1.0, 2.0, 3.0, 30.0], [1.0, 4.0, 3.0, 30.0]):
        ours.update(torch.tensor(norms))
    assert ours.scales().tolist() == pytest.approx([1.0, 0.25, 1.0, 0.1])


def test_terms_are_due_every_so_many_updates():
    ours = balance(
        TaskLoss() + Balanced(TaskLoss() + TaskLoss(), every=3) + Balanced(TaskLoss() + TaskLoss(), by="loss")
    )
    assert [ours.due(update, "gradient") for update in range(4)] == [[1, 2], [], [], [1, 2]]
    assert [ours.due(update, "loss") for update in range(2)] == [[3, 4], [3, 4]]


def test_state_survives_json_to_the_last_bit():
    loss, norms = Balanced(THREE, momentum=0.97), torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    whole, cut = balance(loss), balance(loss)
    for step, row in enumerate(norms):
        if step == 7:
            state = json.loads(json.dumps(cut.state_dict()))
            cut = balance(loss)
            cut.load_state_dict(state)
        whole.update(row)
        cut.update(row)
    assert cut.state_dict() == whole.state_dict()
    assert torch.equal(cut.scales(), whole.scales())
    with pytest.raises(ValueError, match="balance: the checkpoint holds 3 terms, the stage has 2"):
        balance(Balanced(TaskLoss() + TaskLoss())).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_norms_are_those_of_backward(dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).to(dtype)
    model[0].bias.requires_grad_(False)
    hidden = model[0](torch.randn(5, 4, dtype=dtype))
    shares = [model[1](hidden).square().sum(), hidden.sum() * 1e-4, torch.ones(())]
    squares = gradient_norms(shares, model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert squares[2] == 0
    for share, square in zip(shares[:2], squares, strict=False):
        model.zero_grad()
        share.backward(retain_graph=True)
        expected = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
        assert square.item() == pytest.approx(expected.item(), rel=1e-5)


# ---- in a run ------------------------------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.trainer.request_stop("test")


def _trainer(out, by, callbacks=(), **changes):
    rows = text(lambda g, ids: ids[0] % 3)()
    args = arguments(out, per_device_train_batch_size=2, optim="adamw_torch", learning_rate=1e-3, **changes)
    loss = Balanced(TaskLoss() + 0.5 * HiddenMSE() + LogitKL(), by=by, momentum=0.9)
    return StagedTrainer(
        bert()(), args, train_dataset=Rows(rows), data_collator=Pad(), teacher=bert(num_hidden_layers=4)(),
        callbacks=list(callbacks), stages=[Stage("one", "6 steps", loss=loss)],
    )  # fmt: skip


@pytest.mark.parametrize("by", ["gradient", "loss"])
def test_a_balanced_run_resumes_bit_for_bit(by, tmp_path):
    whole = _trainer(tmp_path / "whole", by)
    whole.train()
    stop = StopAt(3)
    cut = _trainer(tmp_path / "cut", by, [stop], save_strategy="steps", save_steps=100)
    stop.trainer = cut
    with pytest.raises(RunInterrupted):
        cut.train()
    resumed = _trainer(tmp_path / "cut", by, save_strategy="steps", save_steps=100)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    first, second = ([log for log in t.state.log_history if "scale_HiddenMSE" in log] for t in (whole, resumed))
    assert [log["scale_HiddenMSE"] for log in first] == [log["scale_HiddenMSE"] for log in second]


def test_gradients_are_brought_to_the_first_terms(tmp_path):
    """From the second update on, each term's gradient is the first one's in length, times its own weight."""
    trainer = _trainer(tmp_path, "gradient", logging_steps=1)
    found = []

    class Norms(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "scale_LogitKL" in logs:
                objective = trainer._stage.objective
                found.append((objective.balance.norms().tolist(), logs))

    trainer.add_callback(Norms())
    trainer.train()
    for norms, logs in found:
        scales = [logs[f"scale_{name}"] for name in ("TaskLoss", "HiddenMSE", "LogitKL")]
        assert scales[0] == 1.0
        assert [s * n for s, n in zip(scales, norms, strict=True)] == pytest.approx([norms[0]] * 3, rel=1e-5)
    assert found[0][1]["scale_HiddenMSE"] != 1.0


def _models_own(model, columns):
    def run(outputs_wanted):
        outputs = model(**columns)
        return outputs.loss, outputs

    return TaskForward(run, items=1, is_overridden=False, outputs_asked=True, outputs_read=True)


def test_the_updates_gradient_is_the_scaled_sum_of_the_terms(tmp_path):
    """The update's gradient is the sum of the terms' own, each times weight and scale."""
    trainer = _trainer(tmp_path, "gradient")
    seen = {}
    step = trainer.training_step

    def checked(model, inputs, *rest):
        objective = trainer._stage.objective
        if objective.updates == 2:
            seen["scales"] = objective.scales.tolist()
            losses, columns = trainer._stage.losses, trainer._prepare_inputs(dict(inputs))
            sums = {}
            trainer.model.train()
            for i, term in enumerate(objective.terms):
                with torch.random.fork_rng():
                    student, teacher = losses.signals(
                        trainer.model, Batch(columns), objective.t, task=_models_own(trainer.model, columns)
                    )
                value = term.loss(student, teacher, columns, 0.5).sum()
                share = value / objective.items[i]
                weights = list(trainer.model.parameters())
                grads = torch.autograd.grad(share * term.weight(0.5) * seen["scales"][i], weights, allow_unused=True)
                for p, grad in enumerate(grads):
                    if grad is not None:
                        sums[p] = sums.get(p, 0) + grad
            step(model, inputs, *rest)
            seen["apart"] = max((p.grad - sums[i]).abs().max().item() for i, p in enumerate(weights) if i in sums)
            seen["largest"] = max(g.abs().max().item() for g in sums.values())
            return student.loss.detach()
        return step(model, inputs, *rest)

    trainer.training_step = checked
    trainer.train()
    assert seen["scales"][1] != 1.0
    assert seen["apart"] < 1e-5 * seen["largest"]
