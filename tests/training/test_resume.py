"""Cut anywhere and resumed = never cut, bit for bit: real processes, really killed, often in the middle of a write."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.support.driver import killed_and_resumed, spread
from tests.support.sameness import assert_equal, assert_same, assert_same_folder, plain, updates

QUICK = {
    "from-outside": [("outside", 4, 0.01)],
    "in-a-checkpoint,at-a-boundary": [("torch_save:half", 2, "optimizer.pt"), ("replace:after", 1, "/02-more")],
    "in-a-stage-folder,before-the-end": [("save_file:half", 1, ".03-lora.tmp"), ("best", 1)],
}
POINTS = {
    "before-the-first-checkpoint": [("update", 2, "step 2.")],
    "first-update": [("update", 1)],
    "first-update-after-a-boundary": [("update", 1, "step 8.")],
    "second-micro-batch-after-a-boundary": [("update", 2, "step 8.")],
    "after-the-boundary's-rename": [("replace:after", 1, "/01-head")],
    "before-the-boundary's-rename": [("replace", 1, "/02-more")],
    "boundary-measured": [("evaluate", 1, "step 8.")],
    "in-evaluation": [("evaluate", 1, "step 9.")],
    "in-the-last-evaluation": [("finish", 1, "merged"), ("evaluate", 2)],
    "as-it-logs": [("log", 1, "step 8.")],
    "model-of-a-checkpoint": [("save_file:half", 1, "checkpoint-9")],
    "scheduler-of-a-checkpoint": [("torch_save:half", 1, "scheduler.pt")],
    "generators-of-a-checkpoint": [("torch_save:half", 2, "rng_state.pth")],
    "seal-of-a-checkpoint": [("replace", 2, "seal.json")],
    "sealed,not-rotated": [("replace:after", 2, "seal.json"), ("rmtree", 2)],
    "rotation": [("unlink", 1, "optimizer.pt")],
    "rotated": [("rmtree:after", 3)],
    "moments-of-a-stage": [("save_file:half", 1, ".02-more.tmp/training_state")],
    "generators-of-a-stage": [("torch_save:half", 1, ".03-lora.tmp")],
    "stage.json": [("replace", 1, "stage.json")],
    "first-manifest": [("replace", 1, "run.json")],
    "manifest-after-a-stage": [("replace", 3, "run.json")],
    "manifest-half-synced": [("fsync", 2, "run.json")],
    "between-stages": [("judge", 1, "more")],
    "before-transforms": [("begin", 1, "lora")],
    "last-save-of-a-best-model": [("best", 1), ("best", 1), ("finish", 1)],
    "all-done-but-said": [("judge", 1, "merged")],
}


@pytest.mark.parametrize("kills", QUICK.values(), ids=QUICK.keys())
def test_killed_and_resumed_is_never_cut(driver, whole_run, tmp_path, kills):
    assert killed_and_resumed(driver, tmp_path / "out", kills) == len(kills)
    assert_same(tmp_path / "out", whole_run())


def test_the_run_is_what_the_kills_need(whole_run):
    """The run has a gate, a token budget, a partial window, a reset, dropout, and a best model that is not the last."""
    out = whole_run()
    ends = [plain(out / name / "stage.json") for name in ("01-head", "02-more", "03-lora", "04-merged")]
    assert [end["ended_by"] for end in ends] == ["until", "until", "Plateau", "until"]
    assert {len(line["ids"]) for line in updates(out)} == {4, 2}
    assert sum(len(ids) for ids in updates(out)[3]["ids"]) == 3
    assert any(entry["kind"] == "notice" for entry in ends[-1]["ledger"])
    assert (
        plain(out / "04-merged" / "training_state" / "trainer_state.json")["best_global_step"] < ends[-1]["global_step"]
    )
    assert len({line["generators"] for line in updates(out)}) == len(updates(out))


def test_resuming_a_finished_run_changes_nothing(driver, whole_run, tmp_path):
    out = tmp_path / "out"
    assert driver.run(out) == "done"
    before, seals = plain(out.with_suffix(".end")), {p: p.read_bytes() for p in out.rglob("seal.json")}
    assert driver.run(out, resume=True) == "done"
    after = plain(out.with_suffix(".end"))
    before.pop("generators"), after.pop("generators")  # nothing drew from them
    assert_equal(after, before, "end")
    assert seals == {p: p.read_bytes() for p in out.rglob("seal.json")}


@pytest.mark.slow
@pytest.mark.parametrize("kills", POINTS.values(), ids=POINTS.keys())
def test_killed_at_this_point_and_resumed_is_never_cut(driver, whole_run, tmp_path, kills):
    out, whole = tmp_path / "out", whole_run()
    assert killed_and_resumed(driver, out, kills) == len(kills)
    if kills[-1][0] == "judge" and kills[-1][2] == "merged":  # nothing was left to train or to draw
        for name in ("01-head", "04-merged"):
            assert_same_folder(out / name, whole / name)
        assert_equal(plain(out / "run.json"), plain(whole / "run.json"), "run.json")
        assert plain(out.with_suffix(".end"))["weights"] == plain(whole.with_suffix(".end"))["weights"]
    else:
        assert_same(out, whole)


VARIANTS = {
    "steps": {},
    "two-kept": {"save_total_limit": 2, "save_steps": 2},
    "epochs": {"strategy": "epoch"},
    "workers": {"workers": 1},
    "epochs-workers": {"strategy": "epoch", "workers": 1},
    "stream": {"stream": True},
    "stream-workers": {"stream": True, "workers": 1},
    "sampling": {"sampling": True},
    "resized": {"resize": True},
    "fused": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor", "resize": True},
    "8-bit": {"optim": "adamw_bnb_8bit", "wide": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_random_and_resumed_is_never_cut(driver, whole_run, tmp_path, name):
    """Chains of kills at moments drawn from a seed."""
    options, struck = VARIANTS[name], 0
    for seed in range(2):
        out = tmp_path / str(seed) / "out"
        struck += killed_and_resumed(driver, out, spread(f"{name}-{seed}", 4), **options)
        assert_same(out, whole_run(**options))
    assert struck >= 2


SCRIPT = """
import sys, pathlib
from tests.support.killable_run import main
main(pathlib.Path(sys.argv[1]), sys.argv[2] == "resume", {})
"""


@pytest.mark.slow
def test_killed_and_resumed_in_fresh_interpreters(whole_run, tmp_path):
    """As a user would: ``kill -9`` of a running script, and the script started again."""
    out, draw = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-c", SCRIPT, str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for resume in ("fresh", "resume"):
        before = len(updates(out)) if out.with_suffix(".updates").exists() else 0
        process = subprocess.Popen([*command, resume], env=env, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if out.with_suffix(".updates").exists() and len(updates(out)) >= before + 6:
                time.sleep(draw.uniform(0, 0.1))
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait(60) == -signal.SIGKILL
    subprocess.run([*command, "resume"], env=env, stdout=subprocess.DEVNULL, check=True, timeout=120)
    assert_same(out, whole_run())
