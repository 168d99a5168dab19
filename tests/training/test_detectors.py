"""Detectors in runs: what they decide stands in ledger, report and card, and a resumed run decides the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from hf_stages import Stage
from hf_stages.commands import cli
from hf_stages.gates import CutRate, Detector, EndStage, Finding, TokenCollapse
from hf_stages.monitors import Monitor
from hf_stages.reports.tables.plan_table import plan_table
from tests.support.runs import StopAt, staged, summary


@dataclass(frozen=True)
class Falls(Detector):
    """Finds trouble at each log of which the loss is below the one before: as good as a random one, and repeatable."""

    def find(self, history):
        losses = history.series("loss")
        fell = len(losses) > 1 and losses[-1][1] < losses[-2][1]
        return Finding("the loss fell", {"loss": losses[-1][1]}) if fell else None


SAVED = {"save_strategy": "steps", "save_steps": 1}


def _stages() -> list[Stage]:
    return [
        Stage("warm", "3 steps", gates=[Falls()]),
        Stage("main", "12 steps", gates=[Falls(then=[CutRate(0.9), CutRate(0.5), EndStage()], cooldown=3)]),
    ]


def _decided(ledger: list[dict]) -> list[tuple]:
    return [(e["step"], e["stage"], e["kind"], e["reason"], e.get("value")) for e in ledger if e["by"] == "Falls"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never cut, and the ledger of its last stage."""
    out = tmp_path_factory.mktemp("whole")
    trainer = staged(out, _stages(), args=SAVED)
    trainer.train()
    return trainer, summary(out, "02-main")["ledger"]


@pytest.mark.parametrize("cut", [2, 6])
def test_a_resumed_run_climbs_as_the_uncut_one(cut, whole, tmp_path):
    trainer, ledger = whole
    staged(tmp_path, _stages(), args=SAVED, callbacks=[StopAt(cut)]).train()
    resumed = staged(tmp_path, _stages(), args=SAVED)
    resumed.train(resume_from_checkpoint=True)
    assert _decided(summary(tmp_path, "02-main")["ledger"]) == _decided(ledger)
    kinds = [kind for _, stage, kind, _, _ in _decided(ledger) if stage == "main"]
    assert kinds.count("cut_lr") >= 2
    keep = ("loss", "learning_rate", "step")
    logs = [[{k: log[k] for k in keep if k in log} for log in t.state.log_history] for t in (trainer, resumed)]
    assert logs[0] == logs[1]
    for one, other in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Alike(Monitor):
    """Says that hidden states are alike."""

    logs = ("token_correlation",)

    def __call__(self, view):
        return {"token_correlation": 0.97}


def test_plan_report_and_card_tell_of_it(tmp_path, capsys):
    collapse = TokenCollapse(warn_for=2, collapsed_for=4, flat=0.9, then=EndStage())
    trainer = staged(tmp_path, [Stage("main", "20 steps", monitors=[Alike()], gates=[collapse])], notify=print)
    table = " ".join(plan_table(trainer.plan()).split())
    for words in ("watches Alike", "then=[EndStage()]", "What gates decide is told to print."):
        assert words in table
    trainer.train()
    assert summary(tmp_path, "01-main")["ended_by"] == "TokenCollapse"
    card = (tmp_path / "01-main" / "README.md").read_text()
    told = "alert: the hidden states of all tokens are becoming alike (token_correlation 0.97, for updates 2)"
    assert "## Decisions" in card
    assert told in card
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path)]) == 0
    report = capsys.readouterr().out
    assert told in report
    assert "stage ended: the hidden states of all tokens have become alike" in report
