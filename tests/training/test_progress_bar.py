from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from hf_stages.training import progress_bar
from hf_stages.training.progress_bar import StageProgress, evaluation_line


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now.seconds)
    return now


def state_at(step, total=30):
    return SimpleNamespace(global_step=step, max_steps=total, is_world_process_zero=True)


def train(callback, clock, steps, total=30):
    for step in steps:
        clock.seconds += 2
        callback.on_step_end(None, state_at(step, total), None)


def test_names_the_stage_and_says_when_stage_and_run_are_done(clock):
    callback = StageProgress()
    callback.enter("warm", 1, 2, 0, 10)
    callback.on_train_begin(None, state_at(0), None)
    train(callback, clock, range(1, 5))
    bar = callback.training_bar
    assert (bar.desc, bar.n, bar.total) == ("1/2 warm", 4, 30)
    assert bar.postfix == "stage 4/10, left 00:12, run left 00:52"
    train(callback, clock, range(5, 11))
    callback.enter("main", 2, 2, 10, 20)
    assert "main" in bar.desc
    train(callback, clock, [11])
    assert bar.postfix == "stage 1/20, left 00:38, run left 00:38"
    callback.on_train_end(None, state_at(11), None)
    assert callback.training_bar is None


def test_steps_done_before_a_resume_do_not_count_as_fast(clock):
    callback = StageProgress()
    callback.enter("main", 2, 2, 10, 20)
    callback.on_train_begin(None, state_at(20), None)
    train(callback, clock, [21])
    assert callback.training_bar.n == 21
    assert callback.training_bar.initial == 20
    assert callback.training_bar.postfix == "stage 11/20, left 00:18, run left 00:18"
    callback.on_train_end(None, state_at(21), None)


def test_the_total_follows_the_run(clock):
    callback = StageProgress()
    callback.enter("a", 1, 1, 0, 5)
    callback.on_train_begin(None, state_at(0, 5), None)
    train(callback, clock, range(1, 7), total=6)
    assert callback.training_bar.total == 6
    assert callback.training_bar.postfix.endswith("run left 00:00")
    callback.on_train_end(None, state_at(6), None)


def test_without_stages_it_is_trainers_own_bar(clock):
    callback = StageProgress()
    callback.on_train_begin(None, state_at(0), None)
    train(callback, clock, [1, 2])
    assert (callback.training_bar.n, callback.training_bar.postfix) == (2, None)
    callback.on_train_end(None, state_at(2), None)


def test_other_ranks_show_nothing(clock):
    callback = StageProgress()
    callback.enter("a", 1, 1, 0, 5)
    quiet = SimpleNamespace(global_step=0, max_steps=5, is_world_process_zero=False)
    callback.on_train_begin(None, quiet, None)
    callback.on_step_end(None, quiet, None)
    callback.on_train_end(None, quiet, None)
    assert callback.training_bar is None


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {"eval_loss": 2.0, "eval_loss_DPO": 0.5, "eval_runtime": 61.0, "stage": 1, "epoch": 0.5},
            "step 9: eval: loss 2, loss_DPO 0.5 (1 min)",
        ),
        (
            {"start_a_b_loss": 1.5, "start_a_b_rows": 3, "start_a_b_runtime": 0.2},
            "step 9: start a_b: loss 1.5, rows 3 (0.2 s)",
        ),
        ({"start_loss": 1.5, "start_items": 3, "stage": 2}, "step 9: start: loss 1.5, as the stage before ended"),
        ({"eval_seen_by": "me", "eval_loss": 1.0}, "step 9: eval: seen_by me, loss 1"),
        ({"loss": 1.0, "epoch": 1.0}, None),
        ({"eval_loss": 1.0, "loss": 2.0}, None),
        ({"epoch": 1.0}, None),
    ],
)
def test_an_evaluation_is_a_line(logs, line):
    assert evaluation_line(logs, 9) == line


def test_a_message_is_written_above_the_bar(monkeypatch):
    callback, cleared = StageProgress(), []
    callback.enter("a", 1, 1, 0, 5)
    callback.on_train_begin(None, state_at(0, 5), None)
    monkeypatch.setattr(callback.training_bar, "clear", lambda: cleared.append(1))
    handlers = [h for h in (*logging.getLogger().handlers, logging.lastResort) if h.filters]
    assert handlers
    record = logging.LogRecord("hf_stages", logging.WARNING, "", 0, "a word", None, None)
    assert handlers[0].filter(record)
    assert cleared == [1]
    callback.on_train_end(None, state_at(5, 5), None)
    assert not any(h.filters for h in handlers)
