"""A run tells what its gates decide, as it happens; it never fails by a message that is not delivered."""

from __future__ import annotations

import pytest

from hf_stages import Recipe, Stage, StagedTrainer, recipes
from hf_stages.core.ledger import Entry, Ledger
from hf_stages.gates import Alert, CutRate, Detector, EndStage, Finding, TrackioAlerts, Webhook
from hf_stages.gates.notify.telling import Notifications
from tests.support import tiny
from tests.support.runs import StopAt, staged


class Late(Detector):
    """Finds trouble in each log from the fourth update on."""

    def find(self, history):
        return Finding("late", {"step": history.step}) if history.step >= 4 else None


LATE = [Late(then=[CutRate(0.5), EndStage()])]


def test_each_decision_is_told_at_its_step(tmp_path):
    told: list[Alert] = []
    staged(tmp_path, [Stage("a", "9 steps", gates=LATE), Stage("b", "1 steps")], notify=told.append).train()
    assert [(alert.step, alert.kind, alert.stage) for alert in told] == [(4, "cut_lr", "a"), (5, "end", "a")]
    assert told[0].run == tmp_path.name
    assert told[0].reason == "late (step 4); the learning rate is multiplied by 0.5"


def test_a_resumed_run_tells_only_what_comes_after_its_checkpoint(tmp_path):
    stages, told = [Stage("a", "9 steps", gates=LATE)], []
    args = {"save_strategy": "steps", "save_steps": 1}
    staged(tmp_path, stages, args=args, notify=told.append, callbacks=[StopAt(4)]).train()
    assert [alert.step for alert in told] == [4]
    staged(tmp_path, stages, args=args, notify=told.append).train(resume_from_checkpoint=True)
    assert [alert.step for alert in told] == [4, 5]


def test_a_message_that_is_not_delivered_stops_nothing_and_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("TEAM_WEBHOOK", "http://127.0.0.1:9/services/SECRET")
    monkeypatch.setattr("hf_stages.gates.notify.telling.logger.warning", lambda text: caplog.messages.append(text))
    told: list[Alert] = []
    said: list[str] = []
    monkeypatch.setattr("hf_stages.gates.notify.telling.logger.warning", said.append)
    trainer = staged(tmp_path, [Stage("a", "9 steps", gates=LATE)], notify=[Webhook("TEAM_WEBHOOK"), told.append])
    trainer.train()
    assert len(told) == 2
    assert len(said) == 1
    assert "the URL in TEAM_WEBHOOK was not reached" in said[0]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
    assert not written
    assert any(b"TEAM_WEBHOOK" in path.read_bytes() for path in tmp_path.glob("run.json"))


def test_somebody_who_is_never_reached_is_told_no_more(monkeypatch):
    said, tried = [], []
    monkeypatch.setattr("hf_stages.gates.notify.telling.logger.warning", said.append)

    def dead(alert):
        tried.append(alert)
        raise OSError("nobody there")

    notifications = Notifications([dead], run="out")
    for step in range(10):
        notifications(Entry(step, "a", "alert", "why", "Late"))
    assert len(tried) == 3
    assert said == [
        "notify: dead: an alert was not delivered: nobody there",
        "notify: dead: 3 alerts in a row were not delivered; it gets no more",
    ]


def test_a_variable_that_is_not_set_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.delenv("TEAM_WEBHOOK", raising=False)
    trainer = staged(tmp_path, [Stage("a", "1 steps")], notify=[print, Webhook("TEAM_WEBHOOK")])
    with pytest.raises(ValueError, match=r"notify\[1\]: Webhook: url_from: the environment variable TEAM_WEBHOOK"):
        trainer.train()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        (3, "notify: expected a function of an alert, or Webhook\\(...\\); got int"),
        ([Webhook], "notify: expected a part, got the class Webhook; write Webhook\\(\\)"),
        ("Webhok", "unknown part 'Webhok' in hf_stages.gates.notify; did you mean 'Webhook'"),
    ],
)
def test_what_cannot_be_told_is_refused(notify, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        staged(tmp_path, [Stage("a", "1 steps")], notify=notify)


def test_without_stages_there_is_nothing_to_tell(tmp_path):
    with pytest.raises(ValueError, match="notify: expected together with stages"):
        StagedTrainer(tiny.llama(), notify=print)


def test_a_file_says_whom_to_tell():
    text = """
stages: [{name: a, until: 1 steps}]
notify: [{use: Webhook, url_from: TEAM_WEBHOOK}, TrackioAlerts]
"""
    recipe = recipes.loads(text)
    assert recipe.notify == (Webhook("TEAM_WEBHOOK"), TrackioAlerts())
    assert recipes.loads(recipes.dump(recipe)) == recipe
    assert recipes.loads(text.replace("[{use: Webhook, url_from: TEAM_WEBHOOK}, TrackioAlerts]", "Webhook")).notify
    assert Recipe([Stage("a", "1 steps")]).notify == ()


def test_a_ledger_that_takes_the_place_of_another_is_heard_as_well():
    heard: list[Entry] = []
    first = Ledger(listener=heard.append)
    second = first.followed_by(Ledger.from_list([{"step": 1, "stage": "a", "kind": "begin", "reason": ""}]))
    second.note(2, "a", "alert", "why")
    assert [entry.step for entry in heard] == [2]
