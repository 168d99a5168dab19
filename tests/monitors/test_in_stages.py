"""What monitors log of a staged run, against the same numbers taken by other means."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_stages import Stage
from hf_stages.data import Mixture
from hf_stages.gates import Gate
from hf_stages.gates.base import Decision
from hf_stages.layers.quantized import Quantized
from hf_stages.losses import LogitMSE, TaskLoss
from hf_stages.monitors import (
    AttentionEntropy,
    GradientNorm,
    LossBySource,
    LossShares,
    Monitor,
    QuantizedWeights,
    RawLoss,
    RunHealth,
    TokenCorrelation,
    UpdateRatio,
)
from hf_stages.transforms import MakeRecurrent, Ternarize
from tests.monitors.all_pairs import by_all_pairs
from tests.support import tiny
from tests.support.runs import staged

NO_CLOCKS = ("tokens_per_second", "memory_gib", "data_wait")


def logs(trainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "learning_rate" in log]


def trained(out: Path, monitors, *, stage: dict | None = None, args: dict | None = None, **options):
    trainer = staged(out, [Stage("a", "4 steps", monitors=monitors, **(stage or {}))], args=args, **options)
    trainer.train()
    return trainer


class Looks(TrainerCallback):
    """Measures gradients before the optimizer's step, and weights around it."""

    def __init__(self):
        self.norms, self.moves = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        blocks = model.model.layers
        self.norms.append([torch.stack([p.grad.norm() for p in b.parameters()]).norm().item() for b in blocks])
        self.before = [p.detach().clone() for p in model.parameters()]

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        pairs = zip(model.parameters(), self.before, strict=True)
        moved = sum(float((p.detach() - b).double().square().sum()) for p, b in pairs)
        self.moves.append((moved / sum(float(b.double().square().sum()) for b in self.before)) ** 0.5)


def test_losses_gradients_and_updates_are_those_of_the_run(tmp_path):
    looks = Looks()
    args = {"gradient_accumulation_steps": 2, "logging_steps": 2, "max_grad_norm": 0.0}
    monitors = [RawLoss(), GradientNorm(), UpdateRatio(sample=None), UpdateRatio(sample=100, blocks=False)]
    trainer = trained(tmp_path, monitors[:3], args=args, callbacks=[looks])
    for log, norms, moved in zip(logs(trainer), looks.norms[1::2], looks.moves[1::2], strict=True):
        assert log["raw_loss"] == pytest.approx(log["loss"], rel=1e-6)
        assert log["raw_loss_max"] >= log["raw_loss"]
        assert log["grad_norm_max"] >= log["grad_norm"]
        assert log["grad_norm_mean"] <= log["grad_norm_max"]
        assert [log[f"grad_norm_block_{i}"] for i in (1, 2)] == pytest.approx(norms, rel=1e-5)
        assert log["update_ratio"] == pytest.approx(moved, rel=1e-4)
    sampled = trained(tmp_path / "sampled", monitors[3:], args=args)
    for log, exact in zip(logs(sampled), logs(trainer), strict=True):
        assert log["update_ratio"] == pytest.approx(exact["update_ratio"], rel=0.15)


def test_norms_are_those_before_clipping(tmp_path):
    free = logs(trained(tmp_path / "free", [GradientNorm()], args={"max_grad_norm": 1e9}))[0]
    clipped = logs(trained(tmp_path / "clipped", [GradientNorm()], args={"max_grad_norm": 1e-3}))[0]
    for name in ("grad_norm_mean", "grad_norm_max", "grad_norm_block_1"):
        assert clipped[name] == free[name] > 0.01


class NoLossAt(TrainerCallback):
    """Spoils a weight before an update, and mends it after."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.kept = model.lm_head.weight.detach().clone()
            model.lm_head.weight.data.mul_(1e4)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.lm_head.weight.data.copy_(self.kept)


def test_a_spike_shows_in_the_largest_loss(tmp_path):
    trainer = trained(tmp_path, [RawLoss()], args={"logging_steps": 4}, callbacks=[NoLossAt(1)])
    (log,) = logs(trainer)
    assert log["raw_loss_max"] > 100
    assert log["raw_loss"] < log["raw_loss_max"] / 3


def test_hidden_states_are_those_of_the_probe_without_dropout(tmp_path):
    rows = tiny.lm_data(rows=3, length=12, seed=5)
    model = tiny.llama(attention_dropout=0.3)
    monitor = TokenCorrelation(layers=(1,), probe=rows, rows=3, every=4)
    trainer = trained(tmp_path, [monitor], model=model)
    assert [("token_correlation" in log) for log in logs(trainer)] == [False, False, False, True]
    with torch.no_grad():
        hidden = trainer.model.eval().model(torch.tensor(rows["input_ids"]), output_hidden_states=True).hidden_states
    found = logs(trainer)[-1]
    assert found["token_correlation_layer_1"] == pytest.approx(by_all_pairs(hidden[1], torch.ones(3, 12)), abs=1e-5)
    assert found["state_norm"] > 0


def test_a_recurrent_core_is_looked_at_after_its_last_cycle_at_a_fixed_depth(tmp_path):
    stage = {"transforms": [MakeRecurrent(1, 1, 1, mean_depth=3)]}
    monitors = [TokenCorrelation(depth=2), RunHealth()]
    shallow = logs(trained(tmp_path / "a", monitors[:1], stage=stage, model=tiny.llama(num_hidden_layers=3)))
    deep = logs(trained(tmp_path / "b", monitors[1:], stage=stage, model=tiny.llama(num_hidden_layers=3)))
    assert shallow[0]["state_change"] > deep[0]["state_change"] >= 0
    assert all(log["recurrence"] >= 1 for log in deep)
    assert [log["loss"] for log in shallow] == [log["loss"] for log in deep]


def test_level_changes_are_those_of_the_latent_weights(tmp_path):
    held: list[list[torch.Tensor]] = []

    class Hold(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            self.on_step_end(args, state, control, model)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            layers = [m for m in model.modules() if isinstance(m, Quantized)]
            held.append([m.weight.detach().sign() for m in layers])

    trainer = trained(
        tmp_path,
        [QuantizedWeights()],
        stage={"transforms": [Ternarize()]},
        args={"learning_rate": 1e-2},
        callbacks=[Hold()],
    )
    for log, before, after in zip(logs(trainer), held[::2], held[1::2], strict=True):
        weights = sum(b.numel() for b in before)
        changed = [int(b.ne(a).sum()) for b, a in zip(before, after, strict=True)]
        assert log["sign_flips"] == pytest.approx(sum(changed) / weights)
        assert log["zero_share"] == pytest.approx(sum(int(a.eq(0).sum()) for a in after) / weights)
        assert log["saturated_layers"] == sum(count == 0 for count in changed)
        assert log["dead_layers"] == 0
    assert logs(trainer)[0]["sign_flips"] > 0


def test_a_layer_of_zeros_is_dead(tmp_path):
    class Kill(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            layer = next(m for m in model.modules() if isinstance(m, Quantized))
            layer.weight_latent.data.mul_(1e-9)[0, 0] = 1.0
            layer.weight_latent.data[1:] = 0

    killed = trained(
        tmp_path, [QuantizedWeights()], stage={"transforms": [Ternarize(per="tensor")]}, callbacks=[Kill()]
    )
    assert logs(killed)[-1]["dead_layers"] == 1


def test_attention_is_that_of_the_models_own_maps(tmp_path):
    rows = tiny.lm_data(rows=2, length=10, seed=3)
    trainer = trained(tmp_path, [AttentionEntropy(layers=(2,), probe=rows, every=4)], args={"learning_rate": 0.05})
    trainer.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = trainer.model.eval()(torch.tensor(rows["input_ids"]), output_attentions=True).attentions[1][:, :, 1:]
    most = torch.arange(2, 11).log()
    entropy = -torch.special.xlogy(maps, maps).sum(-1) / most
    assert logs(trainer)[-1]["attention_entropy"] == pytest.approx(float(entropy.mean()), abs=1e-5)
    assert logs(trainer)[-1]["dead_heads"] == 0
    assert logs(trainer)[-1]["attention_max_logit"] > 0


def test_shares_of_terms_are_weighted_and_sum_to_one(tmp_path):
    loss = TaskLoss() + 10.0 * LogitMSE()
    trainer = trained(tmp_path, [LossShares()], stage={"loss": loss}, teacher=tiny.llama(3))
    for log in logs(trainer):
        assert log["loss_share_TaskLoss"] + log["loss_share_LogitMSE"] == pytest.approx(1.0)
        assert log["loss_share_LogitMSE"] == pytest.approx(10 * log["loss_LogitMSE"] / log["loss"], rel=1e-4)


def test_the_loss_of_a_source_is_the_models_on_its_first_rows(tmp_path):
    data = {"one": tiny.lm_data(seed=1), "two": tiny.lm_data(seed=2)}
    trainer = trained(
        tmp_path, [LossBySource(rows=3, every=4)], stage={"train_dataset": Mixture({"one": 1, "two": 1}, sources=data)}
    )
    for name, rows in data.items():
        ids = torch.tensor(rows["input_ids"][:3])
        with torch.no_grad():
            own = trainer.model.eval()(input_ids=ids, labels=ids).loss
        assert logs(trainer)[-1][f"loss_of_{name}"] == pytest.approx(float(own), rel=1e-5)


def test_watching_changes_no_bit_of_what_is_trained(tmp_path):
    """Dropout, so that one random number more or less would show."""
    everything = [RunHealth(), AttentionEntropy()]
    watched, alone = (
        trained(tmp_path / str(len(monitors)), monitors, model=tiny.llama(attention_dropout=0.3))
        for monitors in (everything, [])
    )
    assert all(torch.equal(a, b) for a, b in zip(watched.model.parameters(), alone.model.parameters(), strict=True))
    assert [log["loss"] for log in logs(watched)] == [log["loss"] for log in logs(alone)]
    assert watched.model.training == alone.model.training


def test_a_run_that_is_resumed_between_two_logs_logs_the_same(tmp_path):
    def run(resume):
        args = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
        stage = Stage("a", "8 steps", transforms=[Ternarize()], monitors=[RunHealth(), Asks(every=3)])
        trainer = staged(tmp_path, [stage], args=args)
        trainer.train(resume_from_checkpoint=resume)
        return [{k: v for k, v in log.items() if k not in NO_CLOCKS} for log in logs(trainer)]

    whole = run(None)
    last = tmp_path / "checkpoint-6"
    assert last.is_dir()
    for folder in tmp_path.glob("01-a*"):
        folder.rename(tmp_path / f"done-{folder.name}")
    assert run(str(last)) == whole


class Asks(Monitor):
    """A monitor of one method, as a user writes it, on occasions of its own."""

    def __init__(self, every=None):
        self.every = every

    def __call__(self, view):
        assert set(view["batch"]) >= {"input_ids", "labels"}
        return {"newest": float(view["loss"]), "asked_at": view["step"], "as_tensor": view["loss"] * 2}


def test_a_monitor_of_one_method_sees_the_newest_batch_when_it_is_due(tmp_path):
    trainer = trained(tmp_path, [Asks(every=2), lambda view: {"t": view["t"]}])
    assert [log.get("asked_at") for log in logs(trainer)] == [None, 2, None, 4]
    assert [log["t"] for log in logs(trainer)] == [0.25, 0.5, 0.75, 1.0]
    assert logs(trainer)[1]["newest"] == pytest.approx(logs(trainer)[1]["loss"], rel=1e-6)
    assert logs(trainer)[1]["as_tensor"] == pytest.approx(2 * logs(trainer)[1]["newest"])


def test_what_is_not_finite_is_seen(tmp_path):
    losses = RawLoss().watch(type("Run", (), {"device": torch.device("cpu")}))
    for loss in (1.0, math.nan, 3.0):
        losses.micro_batch(torch.tensor(loss), {})
        losses.end_micro_batches()
    seen = losses.log({})
    assert math.isnan(seen["raw_loss"])
    assert math.isnan(seen["raw_loss_max"])
    assert losses.log({}) == {}


class GoesBack(Gate):
    """Goes back to the stage's start after its third update, and on from there at half the rate."""

    on = "step"
    keeps = True

    def __call__(self, history):
        return Decision("rollback", "as asked", value=0.5) if history.step == 3 else None


def test_a_rollback_forgets_what_was_gathered_of_the_weights_that_are_gone(tmp_path):
    trainer = staged(
        tmp_path, [Stage("a", "4 steps", monitors=[RawLoss()], gates=[GoesBack()])], args={"logging_steps": 4}
    )
    trainer.train()
    (log,) = logs(trainer)
    assert log["raw_loss"] == log["raw_loss_max"] != pytest.approx(log["loss"], rel=1e-7)


def test_a_group_leaves_out_what_is_declared_itself(tmp_path):
    trainer = trained(tmp_path, [RunHealth(), TokenCorrelation(layers=(1,), every=2), GradientNorm(blocks=False)])
    assert ["token_correlation" in log for log in logs(trainer)] == [False, True, False, True]
    assert "token_correlation_layer_1" in logs(trainer)[1]
    assert not any("grad_norm_block_1" in log for log in logs(trainer))


def test_run_health_fits_models_of_other_kinds(tmp_path):
    for number, (model, data) in enumerate([(tiny.t5(), tiny.lm_data()), (tiny.vit(), tiny.image_data())]):
        trainer = trained(tmp_path / str(number), [RunHealth()], model=model, train_dataset=data)
        assert all(math.isfinite(log["raw_loss"]) and log["update_ratio"] > 0 for log in logs(trainer))
        assert ("token_correlation" in logs(trainer)[0]) == (number == 1)
        assert ("tokens_per_second" in logs(trainer)[0]) == (number == 0)
