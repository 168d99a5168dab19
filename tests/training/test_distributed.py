"""Two ranks on the CPU (torchrun, gloo): equal weights, every layer trained, and the numbers of a single process.

One launch runs every scenario of ``tests/workers/scenarios.py``; each test reads what became of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.workers import drawing, fsdp, recurrence, training, watching
from tests.workers.cases import apart, gradient
from tests.workers.heads import HEADS, update
from tests.workers.ranks import chain, staged
from tests.workers.scenarios import SCENARIOS

SAME = 1e-5
COMPARED = (
    "transitions",
    "transitions_accumulated",
    "gradients",
    "heads",
    "data_order",
    "mixture_order",
    "sharded_transitions",
    "distillation",
    "quantized",
    "forgetting",
    "replaying",
    "recurrent",
    "watched_runs",
    "ladder",
)
SLOW = (
    "fused_heads",
    "more_gradients",
    "stop_anywhere",
    "boundary_resume",
    "without_search_for_unused",
    "checkpointed_activations",
    "sharded_recurrent",
    "sharded_resumed",
    "sharded_incident",
    "sharded_skip",
)


def launch(out: Path, *names: str, timeout: float = 280) -> dict:
    """Run scenarios of a worker on two ranks; their results by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [f"--master-port={port}", str(ROOT / "tests" / "workers" / "two_ranks.py"), str(out), *names]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # One thread per rank: the ranks wait for each other at every step.
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with open(out / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(timeout)
        except BaseException:
            os.killpg(process.pid, 9)
            raise
    results = out / "results.json"
    return json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    return out, launch(out, *(name for name in SCENARIOS if name not in SLOW))


@pytest.fixture(scope="module")
def two_ranks_longer(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    return out, launch(out, *SLOW)


def result(two_ranks, name: str):
    out, results = two_ranks
    if name not in results:
        pytest.fail(f"the worker died before {name}:\n{(out / 'log.txt').read_text()[-4000:]}", pytrace=False)
    if results[name]["problems"]:
        pytest.fail("\n".join(results[name]["problems"]), pytrace=False)
    return results[name]["data"]


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in COMPARED and name not in SLOW])
def test_the_scenario_holds_on_both_ranks(two_ranks, name):
    result(two_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_longer_scenario_holds_on_both_ranks(two_ranks_longer, name):
    result(two_ranks_longer, name)


@pytest.mark.slow
def test_a_fused_head_on_two_ranks_equals_one_process(two_ranks_longer, tmp_path):
    pytest.importorskip("trl")
    found, alone = result(two_ranks_longer, "fused_heads"), training.fused_head_runs(tmp_path, 4)
    for name, seen in alone.items():
        assert {key: pytest.approx(values, rel=1e-4) for key, values in seen.items()} == found[name]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("single")
    staged(out / "8", chain(), 8).train()
    staged(out / "2x4", chain(), 2, 4).train()
    return out


@pytest.mark.parametrize("cut", ["transitions", "transitions_accumulated"])
def test_staged_run_on_two_ranks_equals_one_process(two_ranks, one_process, cut):
    result(two_ranks, cut)
    for number, stage in enumerate(chain(), 1):
        folder = f"{number:02d}-{stage.name}"
        whole, *others = (
            load_file(at / folder / "model.safetensors")
            for at in (one_process / "8", one_process / "2x4", two_ranks[0] / cut / "run")
        )
        for other in others:
            assert apart(whole, other) < SAME, folder
        a, b = (
            json.loads((at / folder / "stage.json").read_text())
            for at in (one_process / "8", two_ranks[0] / cut / "run")
        )
        assert a["tokens"] == b["tokens"]
        assert a["metrics"]["train_loss"] == pytest.approx(b["metrics"]["train_loss"], rel=1e-5)


def test_distillation_on_two_ranks_equals_one_process(two_ranks, tmp_path):
    result(two_ranks, "distillation")
    training.distilled(tmp_path, 8).train()
    for folder in sorted(tmp_path.glob("[0-9]*-*")):
        whole = load_file(folder / "model.safetensors")
        for cut in ("4", "2x2", "checkpointed"):
            found = load_file(two_ranks[0] / "distillation" / cut / folder.name / "model.safetensors")
            assert apart(whole, found) < 3e-4, f"{folder.name}, {cut}"


def test_quantized_run_on_two_ranks_equals_one_process(two_ranks, tmp_path):
    result(two_ranks, "quantized")
    staged(tmp_path, training.quantized_chain(), 8).train()
    for folder in ("01-ternary", "02-split"):
        whole, found = (
            load_file(at / folder / "model.safetensors") for at in (tmp_path, two_ranks[0] / "quantized" / "run")
        )
        assert apart(whole, found) < SAME, folder


def test_a_recurrent_core_on_two_ranks_trains_as_in_one_process(two_ranks, tmp_path):
    depths = result(two_ranks, "recurrent")
    for name, gated in (("zeros", False), ("gated", True)):
        _, alone = recurrence.looped_run(tmp_path / name, 4, "zeros", gated=gated)
        assert alone.seen == depths
        file = f"{name}/01-looped/model.safetensors"
        assert apart(load_file(tmp_path / file), load_file(two_ranks[0] / "recurrent" / file)) < SAME
        assert_same_losses_at_depths(two_ranks[0] / "recurrent" / name, tmp_path / name, rel=1e-6)


def assert_same_losses_at_depths(found: Path, alone: Path, rel: float) -> None:
    measured, expected = (json.loads((at / "01-looped" / "stage.json").read_text())["metrics"] for at in (found, alone))
    assert measured["eval_items"] == expected["eval_items"]
    for metric in ("eval_loss_at_1", "eval_loss_at_4", "eval_ppl_at_4"):
        assert measured[metric] == pytest.approx(expected[metric], rel=rel)


def test_monitors_on_two_ranks_log_the_numbers_of_one_process(two_ranks, tmp_path):
    found = result(two_ranks, "watched_runs")
    for cut, logs in found.items():
        for log, alone in zip(logs, watching.watched(tmp_path / cut, 8), strict=True):
            assert log.keys() == alone.keys(), cut
            for name in alone:
                assert log[name] == pytest.approx(alone[name], rel=2e-3, abs=1e-6), f"{cut}: {name}"


def test_two_ranks_climb_the_ladder_together_whichever_of_them_had_the_trouble(two_ranks):
    entries = [(step, kind) for step, kind in result(two_ranks, "ladder") if kind not in ("notice", "incident")]
    skips = [(step, "skip") for step in (11, 12, 13, 14, 15, 16)]
    assert sorted(entries) == sorted([*skips, (12, "cut_lr"), (14, "rollback"), (16, "rollback"), (24, "end")])


@pytest.mark.slow
def test_a_sharded_recurrent_core_trains_as_in_one_process(two_ranks_longer, tmp_path):
    depths = result(two_ranks_longer, "sharded_recurrent")
    _, alone = recurrence.looped_run(tmp_path, 4, "zeros", norm="sandwich")
    assert alone.seen == depths
    name = "01-looped/model.safetensors"
    sharded = two_ranks_longer[0] / "sharded_recurrent" / "zeros"
    assert apart(load_file(tmp_path / name), load_file(sharded / name)) < SAME
    assert_same_losses_at_depths(sharded, tmp_path, rel=1e-4)


@pytest.mark.parametrize("name", training.GRADIENTS)
def test_gradient_on_two_ranks_equals_one_process(two_ranks, name, tmp_path):
    result(two_ranks, "gradients")
    assert_same_gradient(two_ranks[0] / "gradients", name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", training.MORE_GRADIENTS)
def test_more_gradients_on_two_ranks_equal_one_process(two_ranks_longer, name, tmp_path):
    result(two_ranks_longer, "more_gradients")
    assert_same_gradient(two_ranks_longer[0] / "more_gradients", name, tmp_path)


def assert_same_gradient(found: Path, name: str, out: Path) -> None:
    whole = gradient(name, out, 8)
    for cut in (name, f"{name}.accumulated"):
        assert apart(whole, load_file(found / f"{cut}.safetensors")) < SAME, cut


@pytest.mark.parametrize("name", training.HEADS_ON_RANKS)
def test_heads_on_two_ranks_equal_one_process(two_ranks, name, tmp_path):
    result(two_ranks, "heads")
    place, whole = training.HEADS_ON_RANKS.index(name), update(tmp_path, HEADS[name], 8)
    for cut in (f"{place}", f"{place}.accumulated"):
        found = load_file(two_ranks[0] / "heads" / f"{cut}.safetensors")
        assert apart(whole, found, floor=0.02) < HEADS[name].same, cut


def test_forgetting_on_two_ranks_decides_as_one_process(two_ranks, tmp_path):
    result(two_ranks, "forgetting")
    drawing.forgetful(tmp_path, 8).train()
    both = [
        json.loads((at / "02-two" / "stage.json").read_text()) for at in (tmp_path, two_ranks[0] / "forgetting" / "run")
    ]
    whole, found = ([(e["step"], e["kind"]) for e in stage["ledger"]] for stage in both)
    assert whole == found
    assert "rollback" in [kind for _, kind in found]
    for domain in ("one", "two"):
        losses = [stage["domains"][domain] for stage in both]
        assert losses[0]["items"] == losses[1]["items"]
        assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-3)
    assert not list((two_ranks[0] / "forgetting" / "run").glob("*.kept"))


def test_what_a_gate_replays_does_not_depend_on_the_ranks(two_ranks, tmp_path):
    found = result(two_ranks, "replaying")
    seen, said, _ = drawing.replayed(tmp_path, 8)
    alone = [[[list(row) for row in sorted(rows)] for rows in seen], said]
    assert found == {"4": alone, "2x2": alone}
    assert [kind for _, kind, _ in said[1]][:2] == ["replay"] * 2


def test_data_order_does_not_depend_on_the_ranks(two_ranks, tmp_path):
    found = result(two_ranks, "data_order")
    alone = [[list(row) for row in sorted(rows)] for rows in drawing.order(tmp_path / "8", 8)]
    assert len({str(rows) for rows in alone}) > 3
    assert found["4"] == alone
    assert found["2x2"] == alone
    stream = [[list(row) for row in sorted(rows)] for rows in drawing.order(tmp_path / "stream", 8, stream=True)]
    assert found["stream"] == stream


@pytest.mark.parametrize("name", list(drawing.mixtures()))
def test_mixtures_do_not_depend_on_the_ranks(two_ranks, name, tmp_path):
    found = result(two_ranks, "mixture_order")
    seen, drawn, shares = drawing.mixed(tmp_path / "alone", name, 8)
    alone = [[[list(row) for row in sorted(rows)] for rows in seen], drawn, shares]
    assert found[f"{name}1"] == alone
    assert found.get(f"{name}2", alone) == alone
    assert shares


# ---- FSDP2 ----------------------------------------------------------------------------------------------------------


def test_sharded_run_equals_one_process(two_ranks, tmp_path):
    result(two_ranks, "sharded_transitions")
    staged(tmp_path, fsdp.chain(), 8).train()
    for number, stage in enumerate(fsdp.chain(), 1):
        path = f"{number:02d}-{stage.name}/model.safetensors"
        sharded = two_ranks[0] / "sharded_transitions" / "run" / path
        assert apart(load_file(tmp_path / path), load_file(sharded)) < SAME, path
