"""What is wrong is found, and how soon: the figures of the table in docs/run_health.md."""

from __future__ import annotations

import math

import pytest

from hf_stages.gates import (
    DeadHeads,
    DeadLayers,
    DeadRecurrence,
    Divergence,
    EndStage,
    NonFinite,
    Overthinking,
    StalledLoader,
    TokenCollapse,
    UnshiftedLabels,
)
from hf_stages.gates.spike_window import find_spikes
from tests.gates.detectors.histories import DEPTHS, Story, decisions

SEEDS = range(10)
BEGINS = 400
"""The update at which the run goes bad."""


def _sick(seed: int, change, kind: str = "plain") -> Story:
    """A story whose log is changed from update ``BEGINS`` on."""
    story = Story(seed, kind)
    story.sick = []
    for log in story.logs():
        story.sick.append({**log, **change(log["step"], log)} if log["step"] >= BEGINS else log)
    return story


def _first(gate, story: Story, kind: str) -> int:
    """The updates from the beginning of the trouble to the first decision of a kind; 10**9 for none."""
    found = [entry.step - BEGINS for entry in decisions(gate, story.sick) if entry.kind == kind]
    return min(found, default=10**9)


def _losses(level):
    return lambda step, log: {key: level(step) for key in ("loss", "raw_loss", "raw_loss_max") if key in log}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapse_is_told_within_125_updates_and_acted_on_within_350(seed):
    def collapse(step, log):
        return {"token_correlation": 0.97, "loss": 6.0} if "loss" in log else {}

    story = _sick(seed, collapse)
    gate = TokenCollapse(then=EndStage())
    assert 100 <= _first(gate, story, "alert") <= 125
    assert 300 <= _first(gate, story, "end") <= 350


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapse_while_the_loss_falls_is_only_told(seed):
    story = _sick(seed, lambda step, log: {"token_correlation": 0.99})
    for log in story.sick:
        if "loss" in log:
            log["loss"] = 8.0 * math.exp(-log["step"] / 500)
    assert [entry.kind for entry in decisions(TokenCollapse(then=EndStage()), story.sick)] == ["alert"]


def test_a_collapse_is_acted_on_though_the_loss_fell_as_it_began():
    losses = {step: max(6.0 - 0.05 * step, 3.4) for step in range(0, 410, 10)}
    logs = [{"step": step, "token_correlation": 0.99, "loss": loss} for step, loss in losses.items()]
    entries = decisions(TokenCollapse(then=EndStage()), logs)
    assert [entry.kind for entry in entries] == ["alert", "end"]
    assert entries[1].step <= 400


def test_a_pretrained_models_correlation_counts_from_where_it_began():
    logs = [{"step": step, "token_correlation": 0.96, "loss": 3.0} for step in range(10, 1000, 10)]
    assert decisions(TokenCollapse(), logs)
    assert not decisions(TokenCollapse(relative=True), logs)
    collapsed = [{**log, "token_correlation": 0.9999} if log["step"] > 500 else log for log in logs]
    assert decisions(TokenCollapse(relative=True), collapsed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_divergence_is_found_within_150_updates(seed):
    story = _sick(seed, _losses(lambda step: 9.0))
    assert 100 <= _first(Divergence(then=EndStage()), story, "end") <= 150


@pytest.mark.parametrize("metric", ["grad_norm", "raw_loss", "raw_loss_max"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_not_finite_is_found_at_the_log_that_holds_it(metric, seed):
    story = _sick(seed, lambda step, log: {metric: math.nan} if "loss" in log and step < BEGINS + 60 else {})
    assert _first(NonFinite(then=EndStage()), story, "end") < story.every
    assert [entry.kind for entry in decisions(NonFinite(), story.sick)] == ["alert"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recurrence_that_is_ignored_is_found_at_the_third_evaluation(seed):
    story = _sick(seed, lambda step, log: {f"eval_ppl_at_{depth}": 20.0 for depth in DEPTHS if "eval_loss" in log})
    assert _first(DeadRecurrence(then=EndStage()), story, "end") == 200


def test_a_recurrence_is_not_called_dead_before_the_model_has_learned():
    same = {f"eval_ppl_at_{depth}": 400.0 for depth in DEPTHS}
    logs = [{"step": step, "loss": 6.0 - step / 1000, **same} for step in range(10, 500, 10)]
    assert not decisions(DeadRecurrence(), logs)
    assert decisions(DeadRecurrence(fallen=0), logs)


@pytest.mark.parametrize("seed", SEEDS)
def test_overthinking_is_found_at_the_second_evaluation(seed):
    def worse(step, log):
        return {f"eval_ppl_at_{depth}": 20.0 * (1 + depth / 100) for depth in DEPTHS if "eval_loss" in log}

    assert _first(Overthinking(then=EndStage()), _sick(seed, worse), "end") == 100


def test_a_set_of_its_own_is_read_by_its_name():
    logs = [{"step": s, "eval_prose_loss_at_1": 2.0, "eval_prose_loss_at_64": 3.0} for s in (10, 20)]
    assert decisions(Overthinking(of="prose"), logs)
    assert not decisions(Overthinking(), logs)
    assert not decisions(Overthinking(of="code"), logs)


def test_labels_that_are_not_shifted_are_found_while_it_is_early():
    copies = [{"step": step, "loss": 7.0 * math.exp(-step / 25)} for step in range(10, 300, 10)]
    assert decisions(UnshiftedLabels(), copies)[0].step <= 90
    slow = [{"step": step, "loss": 7.0 * math.exp(-step / 250)} for step in range(10, 2000, 10)]
    assert not decisions(UnshiftedLabels(), slow)
    rewards = [{"step": step, "loss": 0.2 - step / 1000} for step in range(10, 300, 10)]
    assert not decisions(UnshiftedLabels(), rewards[19:])
    assert not decisions(UnshiftedLabels(), [{"step": 10, "loss": 0.2}, {"step": 20, "loss": -0.1}])


@pytest.mark.parametrize(
    ("gate", "metric", "sick"),
    [(DeadLayers, "dead_layers", 2.0), (DeadHeads, "dead_heads", 3.0), (StalledLoader, "data_wait", 0.9)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_counts_and_shares_are_found_at_the_last_of_a_few_logs(gate, metric, sick, seed):
    story = _sick(seed, lambda step, log: {metric: sick} if "loss" in log else {})
    found = _first(gate(then=EndStage()), story, "end")
    assert found <= gate().logs * story.every


def test_saturated_layers_count_where_that_is_asked_for():
    logs = [{"step": step, "saturated_layers": 1.0, "dead_layers": 0.0} for step in range(10, 60, 10)]
    assert not decisions(DeadLayers(), logs)
    assert decisions(DeadLayers(saturated=True), logs)


def test_heads_that_were_dead_before_are_no_news():
    logs = [{"step": step, "dead_heads": 4.0} for step in range(10, 100, 10)]
    assert not decisions(DeadHeads(), logs)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_spike_is_found_at_its_own_update(seed):
    story = Story(seed, "plain")
    story.every = 1
    losses = [story.loss(step) for step in range(1, 600)]
    losses[BEGINS] *= 1.8
    assert find_spikes(losses) == [BEGINS]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenCollapse(warn=0.96), "TokenCollapse: warn: expected 0 < warn <= collapsed < 1"),
        (lambda: Divergence(ratio=1), "Divergence: ratio: expected a number above 1"),
        (lambda: Divergence(patience=0), "Divergence: patience"),
        (lambda: DeadRecurrence(evaluations=0), "DeadRecurrence: evaluations"),
        (lambda: Overthinking(evaluations=0), "Overthinking: evaluations"),
        (lambda: UnshiftedLabels(share=0), "UnshiftedLabels: share"),
        (lambda: DeadLayers(logs=0), "DeadLayers: logs"),
        (lambda: DeadHeads(logs=0), "DeadHeads: logs"),
        (lambda: StalledLoader(share=1.0), "StalledLoader: share"),
        (lambda: StalledLoader(logs=0), "StalledLoader: logs"),
        (lambda: TokenCollapse(warn=math.nan), "TokenCollapse: warn: expected a number, got nan"),
    ],
)
def test_settings_that_could_never_fire_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
