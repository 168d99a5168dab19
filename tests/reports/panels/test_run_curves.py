from __future__ import annotations

import json
import math

import pytest

from hf_stages.reports.panels.read_curves import read_curves
from hf_stages.reports.panels.run_curves import curves_of


def test_the_raw_loss_shows_where_trainer_hides_nan():
    found = curves_of("a", [{"step": 1, "loss": 2.0, "raw_loss": 2.1}, {"step": 2, "loss": 0.0, "raw_loss": math.nan}])
    assert found.loss[0] == (1, 2.0)
    assert math.isnan(found.loss[1][1])
    assert len(found.loss) == 2  # a loss of 0 is what the filter puts where all updates were NaN
    assert curves_of("a", [{"step": 1, "raw_loss": 2.1}]).loss == ((1, 2.1),)


def test_the_last_blocks_correlation_is_shown_else_that_of_the_deepest_layer():
    logs = [{"step": 1, "token_correlation_layer_2": 0.2, "token_correlation_layer_10": 0.3}]
    assert curves_of("a", logs).correlation == ((1, 0.3),)
    assert curves_of("a", [{**logs[0], "token_correlation": 0.4}]).correlation == ((1, 0.4),)


def test_perplexity_is_read_by_set_and_recurrence():
    logs = [
        {"step": 0, "start_prose_ppl_at_4": 9.0, "start_prose_loss_at_4": 1.0},
        {"step": 5, "eval_prose_ppl_at_4": 8.0, "eval_prose_ppl_at_1": 8.5, "eval_prose_loss": 2.0},
        {"step": 5, "eval_loss": math.log(7.0), "eval_runtime": 3.0, "eval_code_accuracy": 0.5},
    ]
    found = curves_of("a", logs)
    assert found.sets == ["", "prose"]
    assert found.perplexity["prose"] == {1: ((5, 8.5),), 4: ((0, 9.0), (5, 8.0))}
    assert found.perplexity[""][None] == ((5, pytest.approx(7.0)),)


@pytest.mark.parametrize(("loss", "shown"), [(1e4, math.inf), (math.inf, math.inf)])
def test_a_loss_beyond_measure_is_an_infinite_perplexity(loss, shown):
    assert curves_of("a", [{"step": 1, "eval_loss": loss}]).perplexity[""][None] == ((1, shown),)


def test_nan_stays_nan():
    assert math.isnan(curves_of("a", [{"step": 1, "eval_loss": math.nan}]).perplexity[""][None][0][1])


def test_decisions_are_marked_and_plain_ends_of_stages_are_not():
    kinds = ("begin", "alert", "skip", "cut_lr", "rollback", "end", "notice")
    ledger = [{"step": 3, "stage": "a", "kind": kind, "reason": "why", "by": "OnSpike"} for kind in kinds]
    found = curves_of("a", [], ledger)
    assert [mark.kind for mark in found.marks] == ["alert", "skip", "cut_lr", "rollback"]
    assert found.marks[0].words == "alert: why [OnSpike]"


def test_a_loss_that_trainer_filtered_is_shown_beside_the_nan():
    logs = [{"step": step, "loss": 3.0 - step / 10, "raw_loss": math.nan} for step in (1, 2)]
    found = curves_of("a", logs).loss
    assert [step for step, _ in found] == [1, 1, 2, 2]
    assert [loss for _, loss in found if math.isfinite(loss)] == [2.9, 2.8]


def test_rows_written_down_because_of_a_decision_have_no_mark_of_their_own():
    def entry(step, kind, by="OnSpike"):
        return {"step": step, "stage": "a", "kind": kind, "reason": f"{kind} {step}", "by": by}

    ledger = [
        *(entry(3, kind) for kind in ("skip", "incident", "cut_lr")),
        *(entry(5, kind, "Divergence") for kind in ("incident", "alert")),
        *(entry(5, kind) for kind in ("skip",)),
        entry(9, "incident", "loss"),
    ]
    found = curves_of("a", [], ledger).marks
    assert [(mark.step, mark.kind) for mark in found] == [
        (3, "skip"), (3, "cut_lr"), (5, "alert"), (5, "skip"), (9, "incident"),
    ]  # fmt: skip
    assert found[0].words == "skip: skip 3 [OnSpike]; incident 3"
    assert found[1].words == "cut_lr: cut_lr 3 [OnSpike]"
    assert found[2].words == "alert: alert 5 [Divergence]; incident 5"


def test_a_number_that_no_float_holds_is_infinite_and_a_step_like_that_none():
    found = curves_of(
        "a", [{"step": 1, "loss": 10**400}, {"step": 10**400, "loss": 2.0}, {"step": 2, "loss": -(10**400)}]
    )
    assert found.loss == ((1, math.inf), (2, -math.inf))


@pytest.mark.parametrize("history", [None, "logs", [3], {"loss": 2.0}])
def test_a_state_without_a_list_of_logs_is_refused(history, tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    with pytest.raises(
        ValueError, match=r"trainer_state.json: expected the state of a Trainer.*log_history: expected a"
    ):
        read_curves(tmp_path)
