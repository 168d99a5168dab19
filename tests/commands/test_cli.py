from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_stages import Stage, StagedTrainer
from hf_stages.commands import cli, run
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.losses import LogitKL
from hf_stages.recipes import loads, three_stage
from tests.support import tiny
from tests.support.plans import plan_of, skeleton

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """``recipe(**changes)`` writes a small recipe to ``run.yaml`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    row = {"input_ids": [3, 4, 5], "labels": [3, 4, 5]}
    Path("rows.jsonl").write_text("\n".join([json.dumps(row)] * 8))

    def write(**changes) -> str:
        content = {
            "model": {"config": {"model_type": "llama", **tiny.LLAMA_SIZES}},
            "args": {"output_dir": "out", "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"},
            "sources": {"rows": {"path": "json", "data_files": "rows.jsonl"}},
            "train_dataset": "rows",
            "eval_dataset": "rows",
            "stages": [
                {"name": "warm", "until": "1 epochs"},
                {"name": "main", "until": "3 steps", "schedule": "Resume"},
            ],
        }
        Path("run.yaml").write_text(json.dumps({**content, **changes}))  # JSON is YAML
        return "run.yaml"

    return write


class FakeTrainer:
    """Does in ``train`` what a test says."""

    def __init__(self, then):
        self.then, self.asked, self.state = then, [], SimpleNamespace(global_step=7)

    def request_stop(self, reason):
        self.asked.append(reason)

    def train(self, resume_from_checkpoint):
        self.resumed = resume_from_checkpoint
        self.then(self)


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """``faked(then)`` puts a FakeTrainer into ``hf-stages run``; no recipe is read."""

    def fake(then) -> FakeTrainer:
        trainer, plan = FakeTrainer(then), plan_of(Stage("a", "5 steps"))
        args = SimpleNamespace(output_dir=str(tmp_path / "out"))
        prepared = SimpleNamespace(plan=lambda: plan, skeleton=skeleton, data={}, args=args, trainer=lambda: trainer)
        monkeypatch.setattr(run, "prepare_recipe", lambda options, output_dir: prepared)
        return trainer

    return fake


def fails(error):
    def then(trainer):
        raise error

    return then


def test_plan_prints_the_table(recipe, capsys):
    assert cli.main(["plan", recipe()]) == 0
    shown = capsys.readouterr()
    assert "1 warm" in shown.out
    assert "rows, 8 examples, 2 per update" in shown.out
    assert not Path("out").exists()


def test_plan_json_probe_and_draw(recipe, capsys):
    assert cli.main(["plan", recipe(), "--json", "--probe", "--draw", "plan.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["steps"] for stage in found["stages"]] == [4, 3]
    assert all(stage["seconds_estimate"] > 0 and stage["params"] > 0 for stage in found["stages"])
    assert Path("plan.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_dataset": "row"}, "did you mean 'rows'?"),
        ({"args": {"output_dir": "out", "learning_rat": 1}}, "did you mean 'learning_rate'?"),
        ({"args": {}}, "output_dir: missing"),
        ({"stages": []}, "expected at least one"),
        (
            {"stages": [{"name": "a", "until": "1 steps", "transforms": [{"use": "Freeze", "patterns": ["x"]}]}]},
            "transforms",
        ),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_bad_recipe_is_a_message_and_exit_code_2(recipe, capsys, command, changes, message):
    assert cli.main([command, recipe(**changes)]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_debug_shows_the_traceback(recipe, capsys):
    assert cli.main(["plan", recipe(args={}), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["fly"], ["plan"], ["run", "x.yaml", "--probe"], ["plan", "no-such.yaml"]])
def test_bad_usage_is_exit_code_2(argv, capsys):
    assert cli.main(argv) == 2
    assert capsys.readouterr().err


def test_an_unknown_picture_format_is_exit_code_2(recipe, capsys):
    assert cli.main(["plan", recipe(), "--draw", "plan.docx"]) == 2
    assert "docx" in capsys.readouterr().err


def test_run_prints_plan_and_results(recipe, capsys):
    assert cli.main(["run", recipe(), "--output-dir", "elsewhere"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("epochs") < shown.index("before -> after")
    assert "elsewhere/02-main" in shown
    assert "The run is done." in shown
    assert json.loads(Path("elsewhere/run.json").read_text())["status"] == "done"


def test_an_expectation_that_fails_is_exit_code_3(recipe, capsys):
    gate = {"use": "Expect", "metric": "eval_loss", "high": 0.001}
    stages = [{"name": "warm", "until": "1 steps", "gates": [gate]}, {"name": "main", "until": "1 steps"}]
    assert cli.main(["run", recipe(stages=stages)]) == 3
    shown = capsys.readouterr()
    assert "eval_loss: expected" in shown.err
    assert "waiting" in shown.out


def test_an_interrupted_run_is_resumed(recipe, capsys, monkeypatch):
    real, calls = StagedTrainer.training_step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(StagedTrainer, "training_step", step)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["run", recipe()]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "Resume with: hf-stages run run.yaml --resume" in capsys.readouterr().err
    assert Path("out/checkpoint-2").is_dir()
    assert cli.main(["run", "run.yaml", "--resume"]) == 0
    assert len(calls) == 7
    assert "The run is done." in capsys.readouterr().out


def test_resuming_another_recipes_folder_is_refused(recipe, capsys):
    assert cli.main(["run", recipe()]) == 0
    assert cli.main(["run", recipe(stages=[{"name": "warm", "until": "2 epochs"}]), "--resume"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StageStopped("too high"), 3),
        (RunInterrupted("asked"), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("boom"), 1),
    ],
)
def test_each_end_of_a_run_has_its_exit_code(faked, capsys, error, code):
    trainer = faked(fails(error))
    assert cli.main(["run", "my run.yaml", "--output-dir", "o", "--trust-remote-code"]) == code
    assert trainer.resumed is False
    shown = capsys.readouterr().err
    assert str(error) in shown
    assert "Resume with: hf-stages run 'my run.yaml' --resume --output-dir o --trust-remote-code" in shown


def test_resume_is_handed_on(faked):
    trainer = faked(lambda trainer: None)
    assert cli.main(["run", "run.yaml", "--resume"]) == 0
    assert trainer.resumed is True


def test_other_ranks_are_silent(faked, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    faked(lambda trainer: None)
    assert cli.main(["run", "run.yaml"]) == 0
    assert capsys.readouterr().out == ""


STUBBORN = """
import sys, time
import pytest
from tests.commands import test_cli
from hf_stages.commands import cli
from hf_stages.core.stops import RunInterrupted

def then(trainer):
    print("training", flush=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.01)
        if trainer.asked and "yields" in sys.argv:
            raise RunInterrupted(trainer.asked[0])

with pytest.MonkeyPatch.context() as patch:
    test_cli.faked.__wrapped__(patch, test_cli.Path("."))(then)
    sys.exit(cli.main(["run", "run.yaml"]))
"""


@pytest.mark.parametrize(
    ("signals", "mode", "code"),
    [
        pytest.param(["SIGINT"], "yields", 130, marks=pytest.mark.slow),
        (["SIGTERM"], "yields", 143),
        pytest.param(["SIGINT", "SIGINT"], "stubborn", 130, marks=pytest.mark.slow),
    ],
)
def test_signals_to_a_process(tmp_path, signals, mode, code):
    script = tmp_path / "script.py"
    script.write_text(STUBBORN)
    process = subprocess.Popen(
        [sys.executable, str(script), mode],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while "training" not in (line := process.stdout.readline()):
            assert line or process.poll() is None, process.stderr.read()
        for name in signals:
            process.send_signal(getattr(signal, name))
            time.sleep(0.3)
        _, shown = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, shown
    assert f"{signals[0]}: writing a checkpoint after this update; once more ends at once" in shown
    assert "Resume with: hf-stages run run.yaml --resume" in shown


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from hf_stages.commands.cli import main; main(['--help']); "
        "print(sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "doctor" in done.stdout
    loaded = done.stdout.splitlines()[-1]
    assert not {"'torch'", "'transformers'", "'numpy'", "'datasets'"} & set(loaded.strip("[]").split(", "))


def test_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "hf_stages", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("hf-stages ")


def test_a_ready_recipe_is_printed_as_yaml_to_edit(capsys):
    assert cli.main(["recipe", "three_stage", "until=9 epochs", "logits={use: LogitKL, temperature: 2}"]) == 0
    found = loads(capsys.readouterr().out)
    assert found == three_stage("9 epochs", logits=LogitKL(temperature=2))
    assert cli.main(["recipe"]) == 0
    assert capsys.readouterr().out.count("Distils in") == 3
    assert cli.main(["recipe", "three_stage", "until"]) == 2
    assert "expected key=value" in capsys.readouterr().err
