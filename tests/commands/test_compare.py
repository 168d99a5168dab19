"""``hf-stages compare`` on folders of ours and of a plain Trainer."""

from __future__ import annotations

import json

import pytest

from hf_stages.commands import cli
from tests.reports.panels.logs import decision, log, plain_run, staged_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain_run(tmp_path / "plain" / "out", log("good"))
    staged_run(tmp_path / "staged" / "out", log("collapsed"), [decision(20, "alert", "it collapsed")], (100, 1000))
    return ["plain/out", "staged/out"]


def test_runs_of_ours_and_of_plain_trainer_compare(runs, capsys):
    assert cli.main(["compare", *runs, "-o", "panels.html"]) == 0
    printed, said = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if "/out" in line}
    assert rows["plain/out"][1] == rows["staged/out"][1] == "1,000"
    assert float(rows["staged/out"][5]) > 0.99  # the highest correlation
    assert "step 20, alert: it collapsed" in printed
    assert "saved: panels.html" in said


@pytest.mark.parametrize("place", ["checkpoint-1000/trainer_state.json", "checkpoint-1000", ""])
def test_a_plain_run_is_read_from_its_folder_a_checkpoint_or_the_file(place, runs, capsys):
    assert cli.main(["compare", f"one={runs[0]}/{place}", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["name"] == "one"
    assert run["loss"][-1][0] == 1000
    assert sorted(map(int, run["perplexity"])) == [1, 4, 8, 16, 32, 64]


def test_decisions_of_detectors_in_a_plain_trainer_are_marked(tmp_path, capsys):
    held = {"args": {}, "attributes": {"entries": [decision(20, "alert", "it collapsed", "TokenCollapse")]}}
    for number, kept in enumerate((held, [held])):  # Trainer keeps a list where a callback was added twice
        state = {"log_history": log("good"), "stateful_callbacks": {"TrainerControl": {}, "DetectorCallback": kept}}
        (tmp_path / f"{number}.json").write_text(json.dumps(state))
        assert cli.main(["compare", str(tmp_path / f"{number}.json")]) == 0
        assert "step 20, alert: it collapsed [TokenCollapse]" in capsys.readouterr().out


def test_a_stage_alone_is_read_too(runs, capsys):
    assert cli.main(["compare", "staged/out/01-part1", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["loss"][-1][0] == 100
    assert run["decisions"][0]["kind"] == "alert"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no such file or folder"),
        (["."], "got neither"),
        (["plain/out", "-o", "panels.gif"], "expected a file that ends in"),
        (["a=plain/out", "a=staged/out"], "two runs are called 'a'"),
        (["plain/out", "--eval-set", "prose"], "no run was evaluated on 'prose'"),
        (["bad.json"], "expected the state of a Trainer"),
        (["empty.json"], "has the run logged anything yet?"),
        (["correlation.json", "loss.json"], "no metric in common"),
    ],
)
def test_mistakes_are_answered_with_how_to_mend_them(words, said, runs, tmp_path, capsys):
    (tmp_path / "bad.json").write_text("[1, 2]")
    for name, logs in (("empty", []), ("loss", [{"step": 1, "loss": 2.0}])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"log_history": logs}))
    (tmp_path / "correlation.json").write_text(json.dumps({"log_history": [{"step": 1, "token_correlation": 0.2}]}))
    assert cli.main(["compare", *words]) == 2
    assert said in capsys.readouterr().err


def test_nan_is_not_written_as_json_that_nobody_reads(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"log_history": [{"step": 1, "loss": NaN}, {"step": 2, "loss": 1.5}]}')
    assert cli.main(["compare", str(tmp_path / "a.json"), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))["runs"]
    assert run["loss"] == [[1, None], [2, 1.5]]
