"""Monitors in a plain Trainer: they change nothing, their numbers reach history and trackers, a resume loses none."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_stages import Stage
from hf_stages.monitors import MonitorCallback, RawLoss, RunHealth
from tests.support import tiny
from tests.support.runs import staged

CLOCKS = ("tokens_per_second", "memory_gib", "data_wait")


class Tracker(TrainerCallback):
    """Stands where trackers stand: before the callbacks of the user."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def plain(out, callbacks, *, kind=Trainer, resume=None, **changes):
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 2, "max_steps": 6}
    given |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3}
    args = TrainingArguments(str(out), optim="adamw_torch_fused", **{**given, **changes})
    trainer = kind(tiny.llama(attention_dropout=0.2), args, train_dataset=tiny.lm_data(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_numbers_reach_history_and_trackers_and_change_no_bit(tmp_path):
    tracker = Tracker()
    watched = plain(tmp_path / "watched", [tracker, MonitorCallback([RunHealth()])])
    alone = plain(tmp_path / "alone", [])
    assert all(torch.equal(a, b) for a, b in zip(watched.model.parameters(), alone.model.parameters(), strict=True))
    logs = [log for log in watched.state.log_history if "loss" in log]
    for log, told, own in zip(logs, tracker.seen, alone.state.log_history, strict=False):
        assert log["raw_loss"] == pytest.approx(own["loss"], rel=1e-6)
        assert log["grad_norm_max"] >= own["grad_norm"]
        assert {**told, "step": log["step"]} == log
        assert {"token_correlation", "update_ratio", "grad_norm_block_2", *CLOCKS} <= log.keys()
        assert {key: log[key] for key in own} == own
    assert len(logs) == 3


def test_a_resumed_run_logs_what_an_uncut_one_does(tmp_path):
    def numbers(trainer):
        # Trainer itself forgets the losses before the cut: its own `loss` is another.
        return [
            {k: v for k, v in log.items() if k not in (*CLOCKS, "loss")}
            for log in trainer.state.log_history
            if "loss" in log
        ]

    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = plain(tmp_path, [MonitorCallback([RunHealth()])], **saving)
    resumed = plain(tmp_path, [MonitorCallback([RunHealth()])], resume=str(tmp_path / "checkpoint-3"), **saving)
    assert numbers(resumed) == numbers(whole)


def test_the_trainer_has_its_own_methods_back_at_the_end(tmp_path):
    class Own(Trainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    trainer = plain(tmp_path, [MonitorCallback([RawLoss()])], kind=Own)
    assert not {"training_step", "_get_grad_norm", "log", "get_batch_samples"} & vars(trainer).keys()
    first = len(trainer.state.log_history)
    trainer.train()
    assert "raw_loss" in trainer.state.log_history[0]
    assert len(trainer.state.log_history) == first


def test_a_loss_that_is_not_finite_is_seen_where_trainer_hides_it(tmp_path):
    class Spoilt(Trainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step == 3 else loss

    logs = plain(tmp_path, [MonitorCallback([RawLoss()])], kind=Spoilt, logging_steps=1).state.log_history
    assert all(log["loss"] == log["loss"] for log in logs[:6])
    assert [log["raw_loss"] != log["raw_loss"] for log in logs[:6]] == [False] * 3 + [True] * 3


def test_what_cannot_work_is_said_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"this trainer runs stages; give monitors to them: Stage\(monitors="):
        staged(tmp_path, [Stage("a", "2 steps")], callbacks=[MonitorCallback([RawLoss()])]).train()
    again = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": True}
    plain(tmp_path, [MonitorCallback([RawLoss()])], **again)
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint=True makes callbacks anew"):
        plain(tmp_path, [MonitorCallback([RawLoss()])], resume=str(tmp_path / "checkpoint-3"), **again)
    with pytest.raises(ValueError, match="expected to be called by a transformers Trainer"):
        MonitorCallback([]).on_train_begin(None, None, None)
