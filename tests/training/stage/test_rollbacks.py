"""Which states a stage saves, keeps on the disk and goes back to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_stages.core.ledger import Entry
from hf_stages.gates import Decision, Forgetting, OnSpike, Rollback
from hf_stages.training.stage.rollbacks import Rollbacks, distances_of, spacing


class Disk:
    """Stands in for the states on the disk."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.most = 0
        self.trainer = SimpleNamespace(args=SimpleNamespace(should_save=False))

    def save(self, step, more, wanted):
        self.held = {one for one in self.held if one in wanted} | {step}
        self.most = max(self.most, len(self.held))

    def go_back(self, step):
        assert step in self.held, f"{step} is not on the disk, there are {sorted(self.held)}"
        return {}


class Stage:
    """A stage of which only the steps, the ledger and the saved states are there."""

    def __init__(self, *gates, first_step: int = 1000) -> None:
        self.disk, self.progress = Disk(), SimpleNamespace(steps=0, first_step=first_step)
        self.ledger: list[Entry] = []
        notes = SimpleNamespace(entries=lambda kind=None: self.ledger)
        self.rollbacks = Rollbacks(self.disk, gates, progress=self.progress, notes=notes)
        self.rollbacks.begin()

    def train(self, to: int) -> None:
        while self.progress.steps < to:
            self.progress.steps += 1
            self.rollbacks.after_update()

    def trouble(self, kind: str = "skip", by: str = "OnSpike") -> None:
        self.ledger.append(Entry(self.progress.first_step + self.progress.steps, "", kind, "", by))

    def go_back(self, distance: int | None) -> int:
        step = self.rollbacks.go_back(Decision("rollback", "", 0.5, steps_back=distance))
        self.trouble("rollback")
        return step


GATE = OnSpike(then=Rollback(200))


@pytest.mark.parametrize("at", [201, 250, 299, 300, 1234, 5000])
def test_it_goes_back_at_least_so_far_and_at_most_half_as_far_again(at):
    stage = Stage(GATE)
    stage.train(at)
    stage.trouble()
    assert 200 <= at - stage.go_back(200) < 300


@pytest.mark.parametrize(("distance", "at"), [(200, 3000), (7, 200), (1, 50)])
def test_few_states_are_on_the_disk_at_once(distance, at):
    stage = Stage(OnSpike(then=Rollback(distance)))
    stage.train(at)
    assert stage.disk.most <= 5
    assert 0 in stage.disk.held


def test_early_in_a_stage_it_goes_back_to_its_start():
    stage = Stage(GATE)
    stage.train(150)
    stage.trouble()
    assert stage.go_back(200) == 0


def test_a_state_is_not_healthy_where_trouble_came_with_it_or_soon_after():
    stage = Stage(GATE)
    for at in (600, 790):
        stage.train(at)
        stage.trouble()
    stage.train(990)
    stage.trouble()
    assert stage.go_back(200) == 500  # 600 and 700 had trouble before the next state


def test_an_alert_of_another_gate_does_not_make_a_state_unhealthy():
    stage = Stage(GATE)
    stage.train(650)
    stage.trouble("alert", by="Forgetting")
    stage.train(900)
    stage.trouble()
    assert stage.go_back(200) == 700


def test_what_was_saved_on_the_way_that_was_left_is_not_gone_back_to():
    stage = Stage(GATE)
    stage.train(950)
    stage.trouble()
    assert stage.go_back(200) == 700
    stage.train(1120)
    stage.trouble()
    assert stage.go_back(200) == 700  # 800 and 900 are of the way that was left
    stage.train(1500)
    stage.trouble()
    assert stage.go_back(200) == 1300


def test_what_is_in_a_checkpoint_says_the_same_again():
    stage = Stage(GATE)
    stage.train(950)
    again = Rollbacks(stage.disk, [GATE], progress=stage.progress, notes=stage.rollbacks.notes)
    again.load_state_dict(stage.rollbacks.state_dict())
    assert again.newest_healthy(200) == stage.rollbacks.newest_healthy(200) == 700


def test_a_gate_that_says_itself_what_to_keep_goes_back_to_that():
    stage = Stage(Forgetting("5%", action="rollback"), GATE)
    stage.train(130)
    stage.rollbacks.keep()
    stage.train(450)
    assert stage.disk.held == {0, 130, 200, 300, 400}
    assert stage.go_back(None) == 130


def test_a_rollback_is_saved_for_by_the_distances_that_gates_declare():
    gates = [OnSpike(then=[Rollback(200), Rollback(50)]), Forgetting("5%", action="rollback")]
    assert distances_of(gates) == {50, 200}
    assert (spacing(200), spacing(50), spacing(3), spacing(1)) == (100, 25, 2, 1)


class Memory:
    """Stands in for windows or a balance."""

    def __init__(self):
        self.calls = []

    def state_dict(self):
        return 1

    def load_state_dict(self, state):
        self.calls.append("recalled")

    def forget(self):
        self.calls.append("forgotten")


def test_windows_come_back_with_a_state_and_begin_anew_where_that_did_not_help():
    stage, memory = Stage(GATE), Memory()
    stage.rollbacks.companions = {"windows": memory}
    stage.disk.go_back = lambda step: {"windows": 1}
    stage.train(950)
    stage.trouble()
    stage.go_back(200)
    assert memory.calls == ["recalled"]
    stage.train(960)
    stage.trouble()
    stage.go_back(200)
    assert memory.calls == ["recalled", "recalled", "forgotten"]
