"""Two processes in one folder: the second is refused before it touches anything, and the dead hold nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.commands.arm_runs import Trainings, run_versus
from hf_stages.core import folder_lock
from hf_stages.core.folder_lock import NAME, lock_folder
from hf_stages.core.stops import StageStopped
from hf_stages.gates import Expect
from hf_stages.packing import pack, pack_folder
from hf_stages.teachers.cache_writer import only_writer
from hf_stages.teachers.declared import Teacher
from hf_stages.transforms import Binarize
from tests.conftest import ROOT
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)


def arguments(out, **kwargs):
    return TrainingArguments(str(out), report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no", **kwargs)


def trainer(out, stages=("a",), **kwargs):
    stages = [Stage(name, "1 step") if isinstance(name, str) else name for name in stages]
    return StagedTrainer(tiny.bert(), arguments(out), stages=stages, train_dataset=tiny.class_data(16), **kwargs)


HOLD = """
import os, sys, time
from pathlib import Path
from hf_stages.core.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    if sys.argv[2] == "forked" and not os.fork():
        time.sleep(100)
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def held(tmp_path):
    """``held("alone")`` is a process that holds ``tmp_path / "out"``; "forked" has a child, as who loads data has."""
    begun = []

    def hold(how):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", HOLD, str(tmp_path / "out"), how]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        begun.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in begun:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_process_is_refused_and_a_dead_one_holds_no_lock(held, tmp_path):
    out = tmp_path / "out"
    first = held("forked")
    with pytest.raises(ValueError, match=rf"out: process {first.pid} on .* writes into this folder.*choose another"):
        trainer(out, ["a"]).train()
    assert [path.name for path in out.iterdir()] == [NAME]
    first.kill()  # its child lives on
    first.wait()
    trainer(out, ["a"]).train()
    assert (out / "01-a" / "stage.json").is_file()
    assert not (out / NAME).exists()


def test_another_recipe_beside_it_is_refused_in_a_resume_too(tmp_path):
    """Two threads of one process, as two cells of a notebook are; nothing half-written is swept away."""
    out, seen = tmp_path / "out", {}

    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            (out / ".01-a.tmp").mkdir()

            def run():
                with pytest.raises(ValueError, match=f"process {os.getpid()} on") as found:
                    trainer(out, ["b"]).train(resume_from_checkpoint=True)
                seen["said"] = str(found.value)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            seen["kept"] = (out / ".01-a.tmp").exists()

    trainer(out, ["a"], callbacks=[Second()]).train()
    assert seen["kept"]
    assert "two writers" in seen["said"]
    assert [path.name for path in out.glob("0*")] == ["01-a"]


def test_the_lock_is_released_however_a_run_ends(tmp_path):
    judged = Stage("a", "1 step", gates=[Expect("train_loss", high=-1.0)])
    with pytest.raises(StageStopped):
        trainer(tmp_path / "out", [judged, "b"]).train()
    with pytest.raises(ValueError, match="already holds a run"):
        trainer(tmp_path / "out").train()
    with lock_folder(tmp_path / "out"):
        pass
    assert not (tmp_path / "out" / NAME).exists()


@pytest.mark.slow
def test_without_stages_nothing_is_locked(held, tmp_path):
    held("alone")
    args = arguments(tmp_path / "out", max_steps=1)
    StagedTrainer(tiny.bert(), args, train_dataset=tiny.class_data(16)).train()


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    def cannot(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock, "_lock", cannot)
    trainer(tmp_path / "out").train()
    assert (tmp_path / "out" / "01-a" / "stage.json").is_file()
    assert len([r for r in caplog.records if "cannot be locked" in r.message]) == 1


def test_packing_is_refused_where_another_process_has_written_meanwhile(tmp_path, monkeypatch):
    model, write = Binarize()(tiny.bert()), pack_folder.write_packed

    def slowly(*args):
        size = write(*args)
        (tmp_path / "packed").mkdir()
        (tmp_path / "packed" / "mine.txt").write_text("kept", encoding="utf-8")
        return size

    monkeypatch.setattr(pack_folder, "write_packed", slowly)
    with pytest.raises(ValueError, match="not empty"):
        pack(model, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert (tmp_path / "packed" / "mine.txt").read_text(encoding="utf-8") == "kept"


def test_comparisons_and_trials_lock_their_folder(tmp_path):
    """Between two of their runs too, where no trainer holds it."""
    prepared = SimpleNamespace(args=arguments(tmp_path / "out"))
    with (
        lock_folder(tmp_path / "versus"),
        pytest.raises(ValueError, match=r"versus: process .* writes into this folder"),
    ):
        run_versus(Trainings(prepared), [SimpleNamespace(updates=1, name="staged")], [0], tmp_path / "versus")
    assert not list((tmp_path / "versus").iterdir())


def test_a_second_writer_of_a_teacher_cache_waits_and_finds_it_written(tmp_path):
    """Ranks ask for one cache together: none is refused, one writes."""
    cache, data, found = tmp_path / "cache", tiny.class_data(8), []
    asked = threading.Thread(target=lambda: found.append(Teacher(tiny.bert()).cache(data, cache)))
    with only_writer(tmp_path / ".cache.partial"):
        asked.start()
        asked.join(0.3)
        assert asked.is_alive()
        assert not cache.exists()
    asked.join()
    found[0].verify()


# ---- launchers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("started", "refused"), [("2", True), ("16", True), ("1", False), ("", False)])
def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch, started, refused):
    """As in a pod of several that sets WORLD_SIZE and no LOCAL_RANK."""
    args = arguments(tmp_path / "out")
    assert args.world_size == 1  # accelerate makes up its mind, and finds one process
    monkeypatch.setenv("WORLD_SIZE", started)
    StagedTrainer(tiny.bert(), args)  # without stages it is Trainer
    expected = f"WORLD_SIZE is {started}.* this trainer is of 1: each process would train alone"
    with pytest.raises(ValueError, match=expected) if refused else nullcontext():
        StagedTrainer(tiny.bert(), args, stages=[Stage("a", "1 step")], train_dataset=tiny.class_data(16))


ALONE = """
import sys
from transformers import TrainingArguments
from hf_stages import Stage, StagedTrainer
from tests.support import tiny
args = TrainingArguments(sys.argv[1], report_to=[], disable_tqdm=True, save_strategy="no")
StagedTrainer(tiny.bert(), args, stages=[Stage("a", "1 step")], train_dataset=tiny.class_data(16)).train()
"""


@pytest.mark.slow
def test_torchrun_on_a_cpu_is_told_to_set_use_cpu(tmp_path):
    script, out = tmp_path / "train.py", tmp_path / "out"
    script.write_text(ALONE, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(out),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0
    assert "WORLD_SIZE is 2" in done.stderr
    assert "use_cpu=True" in done.stderr
    assert not list(out.iterdir())
