from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import TrainerCallback

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.layers import at_depth, find_recurrence
from hf_stages.layers.adaptive_exit import exit_shares
from hf_stages.losses import HaltingLoss, LogitMSE, TaskLoss
from hf_stages.models.capture import Capture
from hf_stages.models.signals import Signals
from hf_stages.transforms import MakeRecurrent
from tests.support import tiny
from tests.support.recurrent import looped, tokens
from tests.support.runs import staged, summary


def batch():
    ids = tokens(2, 8)
    labels = ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels}


def test_the_loss_is_the_expected_one_over_all_depths_and_its_gradient_reaches_all_parameters():
    """Written out: the model at each depth by itself, weighted with the gate's probabilities, in the model's own CE."""
    model, rows = looped(exit="gate"), batch()
    core = find_recurrence(model)
    targets = functional.pad(rows["labels"][:, 1:], (0, 1), value=-100)
    loss = HaltingLoss(beta=Linear(0, 0.2)).for_models(model, None)
    capture = Capture(model, loss.needs)
    with at_depth(model, 4), capture.collecting() as captured:
        capture.run(model, {"input_ids": rows["input_ids"]})
    capture.remove()
    assert core.cycle_watch is None
    value, logged = loss(Signals(None, captured=captured), None, rows, 0.5)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    stays, expected, entropy, cycles = torch.ones(rows["labels"].shape), 0.0, 0.0, 0.0
    real = targets != -100
    for depth in range(1, 5):
        with torch.no_grad(), at_depth(model, depth):
            logits = model(rows["input_ids"]).logits
            leaves = torch.sigmoid(core.gate(core.last_states[1])).squeeze(-1) if depth < 4 else torch.ones_like(stays)
        share = stays * leaves
        stays = stays * (1 - leaves)
        each = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
        expected += (share * each)[real].sum()
        entropy -= (share * share.log())[real].sum()
        cycles += (share * depth)[real].sum()
    assert loss.items(rows) == real.sum() == 12
    torch.testing.assert_close(value.detach(), expected - 0.1 * entropy, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logged, torch.stack([entropy, cycles]), atol=1e-4, rtol=1e-5)


def test_a_single_cycle_gives_the_gate_a_gradient_of_zero():
    model, rows = looped(exit="gate"), batch()
    loss = HaltingLoss().for_models(model, None)
    capture = Capture(model, loss.needs)
    with at_depth(model, 1), capture.collecting() as captured:
        capture.run(model, {"input_ids": rows["input_ids"]})
    loss(Signals(None, captured=captured), None, rows, 0.0)[0].backward()
    assert find_recurrence(model).gate.weight.grad.eq(0).all()


def test_shares_sum_to_one_and_the_last_cycle_takes_whoever_is_left():
    leaving = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    shares = exit_shares(leaving)
    torch.testing.assert_close(shares.sum(0), torch.ones(7))
    torch.testing.assert_close(shares[4], (1 - leaving[:4]).prod(0))
    assert exit_shares(leaving[:1]).eq(1).all()


def test_a_stage_trains_the_gate_and_tokens_leave_by_it(tmp_path):
    core = MakeRecurrent(1, 2, 1, mean_depth=2, exit="gate", backprop=4)
    stage = Stage("gated", "12 steps", transforms=[core], loss=HaltingLoss(beta=0.01))
    args = {"gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    trainer = staged(tmp_path, [stage], model=tiny.llama(num_hidden_layers=4), args=args, train_dataset=tiny.lm_data(8))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "HaltingLoss_cycles" in log]
    assert logs[-1]["loss"] < logs[0]["loss"] - 0.5
    assert all(1 <= log["HaltingLoss_cycles"] <= 4 for log in logs)
    trained = find_recurrence(trainer.model.eval())
    assert trained.gate.bias.abs().item() > 0.01
    trainer.model(tokens())
    assert trained.last_cycles.min() >= 1
    assert summary(tmp_path, "01-gated")["metrics"]["train_loss"] > 0


def test_a_gate_without_its_loss_and_the_loss_without_a_gate_are_refused(tmp_path):
    def run(core, loss):
        stage = Stage("a", "1 steps", transforms=[core], loss=loss)
        staged(tmp_path, [stage], model=tiny.llama(num_hidden_layers=4)).train()

    with pytest.raises(ValueError, match="exit='gate': nothing in the stage's loss trains the gate"):
        run(MakeRecurrent(1, 2, 1, exit="gate"), TaskLoss())
    with pytest.raises(ValueError, match="HaltingLoss: LlamaForCausalLM has no gate to train"):
        run(MakeRecurrent(1, 2, 1), HaltingLoss())
    with pytest.raises(ValueError, match="beta: expected 0 or more"):
        HaltingLoss(beta=-0.1)


def gated(**options):
    return MakeRecurrent(1, 2, 1, mean_depth=2, exit="gate", backprop=4, **options)


@pytest.mark.parametrize("beside", [TaskLoss(), Linear(1, 0) * TaskLoss(), LogitMSE()])
def test_it_trains_beside_a_loss_that_reads_the_whole_model(beside, tmp_path):
    stage = Stage("a", "2 steps", transforms=[gated()], loss=beside + HaltingLoss())
    options = {"teacher": tiny.llama(seed=1)} if isinstance(beside, LogitMSE) else {}
    args = {"eval_strategy": "steps", "eval_steps": 1}
    data = {"train_dataset": tiny.lm_data(8), "eval_dataset": tiny.lm_data(4)}
    trainer = staged(tmp_path, [stage], model=tiny.llama(num_hidden_layers=4), args=args, **data, **options)
    trainer.train()
    assert find_recurrence(trainer.model).gate.bias.item() != 0
    assert any("HaltingLoss_cycles" in log for log in trainer.state.log_history)


def test_a_model_that_changes_its_logits_is_refused_by_that_reason():
    def halve(module, args, output):
        output.logits = output.logits / 2
        return output

    model, rows = looped(exit="gate"), batch()
    model.register_forward_hook(halve)
    loss = HaltingLoss().for_models(model, None)
    capture = Capture(model, loss.needs | {"loss"})
    capture.check_head(lambda: model(rows["input_ids"]))
    with capture.collecting() as captured:
        capture.run(model, {"input_ids": rows["input_ids"]})
    with pytest.raises(ValueError, match="HaltingLoss: the model changes its head's output"):
        loss(Signals(None, captured=captured), None, rows, 0.0)


def test_a_gate_that_no_loss_of_a_stage_reads_stays_as_it_is_and_trains_again_later(tmp_path):
    gates = []

    class Gates(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            gate = find_recurrence(model).gate
            gates.append((gate.weight.requires_grad, gate.weight.sum().item()))

    stages = [
        Stage("a", "2 steps", transforms=[gated()], loss=HaltingLoss()),
        Stage("b", "2 steps"),
        Stage("c", "2 steps", loss=HaltingLoss()),
    ]
    args = {"weight_decay": 0.5, "learning_rate": 1e-2}
    model = tiny.llama(num_hidden_layers=4)
    staged(tmp_path, stages, model=model, args=args, train_dataset=tiny.lm_data(8), callbacks=[Gates()]).train()
    assert [trains for trains, _ in gates] == [True, True, False, False, True, True]
    values = [value for _, value in gates]
    assert values[1] == values[2] == values[3] != values[5]
