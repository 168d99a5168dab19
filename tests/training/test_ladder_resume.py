"""Cut at any step of the ladder and resumed = never cut, bit for bit: real processes, really killed."""

from __future__ import annotations

import pytest

from tests.support.driver import killed_and_resumed, spread
from tests.support.sameness import assert_same, plain, updates

BIG, NAN = 1e5, float("nan")
LADDER = {"poison": {"10": BIG, "11": NAN, "12": BIG, "13": NAN, "14": NAN, "15": BIG, "30": BIG, "37": NAN}}
"""A gradient is too large or NaN after so many updates. The last is that of the run's last update."""
DECIDED = [
    *[("skip", 11), ("skip", 12), ("cut_lr", 12), ("skip", 13), ("skip", 14), ("rollback", 14)],
    *[("skip", 15), ("skip", 16), ("rollback", 16), ("skip", 31), ("end", 33), ("end", 38), ("skip", 38)],
]
QUICK = {
    "in-a-cut,in-a-rollback": [("decide", 1, "cut_lr"), ("go_back:after", 1, "8")],
    "in-a-state,behind-a-rollback": [("torch_save:half", 6, "kept.pt"), ("decide:after", 1, "rollback after 16")],
}
POINTS = {
    "before-the-host-hears": [("update", 1, "step 11."), ("update", 1, "step 12.")],
    "in-a-skipped-update": [("update", 4, "step 10."), ("update", 3, "step 11.")],
    "before-a-rollback": [("decide", 1, "rollback after 14"), ("go_back", 2)],
    "half-back": [("go_back:after", 1), ("go_back:after", 1)],
    "behind-a-cut": [("decide:after", 1, "cut_lr"), ("update", 4, "step 12.")],
    "behind-a-rollback": [("update", 2, "step 14."), ("update", 2, "step 16.")],
    "checkpoint-in-an-incident": [("replace:after", 1, "checkpoint-12/"), ("replace:after", 1, "checkpoint-15/")],
    "seal-of-a-state": [("replace", 4, "kept/"), ("replace:after", 5, "kept/")],
    "removal-of-a-state": [("rmtree", 6), ("rmtree:after", 6)],
    "last-update": [("update", 2, "step 37."), ("finish", 1, "calm")],
}


def decided(out):
    ledger = plain(out / "02-calm" / "stage.json")["ledger"]
    return [
        (entry["kind"], entry["step"]) for entry in ledger if entry["kind"] in ("skip", "cut_lr", "rollback", "end")
    ]


def test_the_ladder_is_climbed_to_its_top(whole_run):
    out = whole_run(**LADDER)
    assert decided(out) == DECIDED
    assert list((out / "_private" / "incidents").glob("step-*.jsonl"))  # compared as well where a run is cut
    ledger = [e for e in plain(out / "02-calm" / "stage.json")["ledger"] if e["kind"] == "rollback"]
    assert ["after 8 updates" in ledger[0]["reason"], ledger[0].get("again_from")] == [True, None]
    assert ["after 5 updates" in ledger[1]["reason"], ledger[1].get("again_from")] == [True, 5]


def test_rows_come_again_behind_a_rollback_that_says_so(whole_run):
    seen = {line["step"]: line["ids"] for line in updates(whole_run(**LADDER)) if line["stage"] == "climb"}
    assert [seen[step] for step in range(16, 26)] == [seen[step] for step in range(5, 15)]
    assert seen[16] != seen[14]
    assert len({str(seen[step]) for step in range(16)}) == 16  # else the data go on


@pytest.mark.parametrize("kills", QUICK.values(), ids=QUICK.keys())
def test_killed_on_the_ladder_and_resumed_is_never_cut(driver, whole_run, tmp_path, kills):
    check(driver, whole_run, tmp_path / "out", kills)


@pytest.mark.slow
@pytest.mark.parametrize("kills", POINTS.values(), ids=POINTS.keys())
def test_killed_at_this_point_of_the_ladder_and_resumed_is_never_cut(driver, whole_run, tmp_path, kills):
    check(driver, whole_run, tmp_path / "out", kills)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{"optim": "adamw_torch_fused"}, {"save_steps": 2, "save_total_limit": 2}])
def test_killed_at_random_on_the_ladder_and_resumed_is_never_cut(driver, whole_run, tmp_path, options, seed):
    out, options = tmp_path / "out", {**LADDER, **options}
    killed_and_resumed(driver, out, spread(f"ladder-{seed}", 4), **options)
    assert_same(out, whole_run(**options))


def check(driver, whole_run, out, kills):
    assert killed_and_resumed(driver, out, kills, **LADDER) == len(kills)
    whole = whole_run(**LADDER)
    assert_same(out, whole)
    written = sorted(path.name for path in (whole / "incidents").glob("*.jsonl"))
    assert written == sorted(path.name for path in (out / "incidents").glob("*.jsonl"))
    for name in written:
        assert (out / "incidents" / name).read_text() == (whole / "incidents" / name).read_text()
