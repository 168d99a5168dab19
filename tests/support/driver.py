"""Runs that die. A warm parent process forks one child per run, so that each new process costs no imports.

``python -m tests.support.driver`` reads one JSON order per line and answers each with one JSON line. A child dies by
SIGKILL at a point of the order's choosing, often in the middle of a write; the next child resumes what it left behind.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# ---- orders: what the tests use ------------------------------------------------------------------------------------


class Driver:
    """The parent, seen from a test: ``driver.run(out, kill=("evaluate", 2), resume=True, save_total_limit=1)``."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )

    def run(self, out: Path, *, kill: tuple | None = None, resume: bool = False, **options: Any) -> str:
        """``"done"``, ``"killed"`` or the error the run ended with. What it said is in ``out.log``."""
        order = {"out": str(out), "kill": kill, "resume": resume, "options": options}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the driver died"
        return json.loads(answer)

    def close(self) -> None:
        self.process.terminate()  # closing its input says nothing while a test's forked worker still holds the pipe
        self.process.wait(30)


def killed_and_resumed(driver: Driver, out: Path, kills: list[tuple], **options: Any) -> int:
    """Run to each kill in turn, then to the end. Returns how many of them struck."""
    struck = 0
    for index, kill in enumerate(kills):
        answer = driver.run(out, kill=kill, resume=index > 0, **options)
        if answer == "done":
            return struck
        assert answer == "killed", answer
        struck += 1
    answer = driver.run(out, resume=True, **options)
    assert answer == "done", answer
    return struck


def serve() -> None:
    from tests.support import killable_run

    killable_run.warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(_forked(order, killable_run.main)), flush=True)


def _forked(order: dict[str, Any], run: Callable[..., None]) -> str:
    out = Path(order["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    log, kill = out.with_suffix(".log"), order["kill"]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(log, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if kill and kill[0] != "outside":
                arm(*kill)
            run(out, order["resume"], order["options"])
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    if kill and kill[0] == "outside":
        _kill_from_outside(child, out, *kill[1:])
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL else f"signal {os.WTERMSIG(status)}"
    return "done" if os.WEXITSTATUS(status) == 0 else log.read_text()[-3000:]


def _kill_from_outside(child: int, out: Path, updates: int, delay: float) -> None:
    """``kill -9`` some time after the run has begun so many more updates, wherever it then is."""
    record = out.with_suffix(".updates")
    before = len(record.read_text().splitlines()) if record.exists() else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        if record.exists() and len(record.read_text().splitlines()) - before >= updates:
            break
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)


# ---- points: where a child dies ------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def arm(point: str, n: int, pattern: str = "") -> None:
    """Die at the n-th call of a point whose path holds ``pattern``: instead of it, in the middle of it, or just
    after."""
    name, _, when = point.partition(":")
    for module, attribute, path_of in POINTS[name]():
        _wrap(module, attribute, path_of, when or "before", [n], pattern)


def _wrap(module: Any, attribute: str, path_of: Callable, when: str, left: list[int], pattern: str) -> None:
    inner = getattr(module, attribute)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        path = path_of(*args, **kwargs)
        if pattern not in path:
            return inner(*args, **kwargs)
        left[0] -= 1
        if left[0]:
            return inner(*args, **kwargs)
        if when == "before":
            die()
        if when == "full":
            _fill(path, args[0])
        result = inner(*args, **kwargs)
        if when == "half":
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
        die()
        return result

    setattr(module, attribute, wrapped)


def _fill(path: str, written: Any) -> None:
    """Fail as a full disk does, with half a file there; torch raises an error of its own."""
    folder = isinstance(written, str | os.PathLike) and os.path.isdir(written)  # a rename that fails leaves nothing
    if not os.path.exists(path) and not folder:
        Path(path).write_bytes(b"\0" * 100)
    if isinstance(written, dict) and not path.endswith(".safetensors"):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0")
    raise OSError(errno.ENOSPC, "No space left on device", path)


def _first(*args: Any, **kwargs: Any) -> str:
    return str(args[0])


def _second(*args: Any, **kwargs: Any) -> str:
    return str(args[1] if len(args) > 1 else next(iter(kwargs.values())))


def _step(trainer: Any, *args: Any, **kwargs: Any) -> str:
    return f"step {trainer.state.global_step}."


def _stage(runner: Any, planned: Any, *args: Any, **kwargs: Any) -> str:
    return getattr(planned, "name", planned)


def _decision(decisions: Any, decision: Any, gate: Any) -> str:
    return f"{decision.action} after {decisions.notes.progress.global_step}."


def _descriptor(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _torch_save() -> Iterator[tuple]:
    import torch

    yield torch, "save", _second


def _save_file() -> Iterator[tuple]:
    import safetensors.torch
    from peft import peft_model
    from transformers import modeling_utils

    from hf_stages.models import optimizer_moments

    for module in (optimizer_moments, safetensors.torch):
        yield module, "save_file", _second
    for module in (modeling_utils, peft_model):
        yield module, "safe_save_file", _second


def _method(module: str, cls: str, name: str, path_of: Callable) -> Callable[[], Iterator[tuple]]:
    def found() -> Iterator[tuple]:
        import importlib

        yield getattr(importlib.import_module(module), cls), name, path_of

    return found


def _rmtree() -> Iterator[tuple]:
    import shutil

    def path_of(path: Any, *args: Any, **kwargs: Any) -> str:
        return str(path)

    yield shutil, "rmtree", path_of


def _unlink() -> Iterator[tuple]:
    yield os, "unlink", _first


POINTS: dict[str, Callable[[], Iterator[tuple]]] = {
    "update": _method("transformers", "Trainer", "training_step", _step),
    "evaluate": _method("transformers", "Trainer", "prediction_step", _step),
    "log": _method("transformers", "Trainer", "log", _step),
    "best": _method("transformers", "Trainer", "_load_best_model", _step),
    "begin": _method("hf_stages.training.handover", "Handover", "begin", _stage),
    "judge": _method("hf_stages.training.runner", "Runner", "_check_expectations", _stage),
    "finish": _method("hf_stages.training.runner", "Runner", "_finish", _stage),
    "decide": _method("hf_stages.training.stage.decisions", "Decisions", "apply", _decision),
    "go_back": _method("hf_stages.training.stage.rollback_states", "RollbackStates", "go_back", _second),
    "torch_save": _torch_save,
    "save_file": _save_file,
    "fsync": lambda: iter([(os, "fsync", _descriptor)]),
    "replace": lambda: iter([(os, "replace", _second)]),
    "rmtree": _rmtree,
    "unlink": _unlink,
}


def spread(seed: int | str, count: int) -> list[tuple]:
    """Moments of death, drawn once and for all from the seed."""
    draw = random.Random(seed)
    points: list[tuple] = []
    for _ in range(count):
        kind = draw.choice(["outside", "update", "evaluate", "fsync", "save_file", "torch_save", "replace", "unlink"])
        if kind == "outside":
            points.append((kind, draw.randint(1, 12), round(draw.uniform(0, 0.1), 4)))
        else:
            when = {"save_file": ":half", "torch_save": ":half", "replace": draw.choice(["", ":after"])}.get(kind, "")
            most = {"update": 60, "evaluate": 20, "fsync": 80, "unlink": 40}.get(kind, 10)
            points.append((kind + when, draw.randint(1, most)))
    return points


if __name__ == "__main__":
    serve()
