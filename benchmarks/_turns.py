"""Processes that train the same step and take turns, so that whatever else the machine does hits all alike.

Parent to child, one line: how many steps to take. Child to parent, one JSON line each: what it is once it is built
(``{"ready": true}``, ``{"absent": reason}`` or ``{"failed": reason}``), then for every step of a turn its seconds and
the CPU's, over all threads: where others use the machine, the second tells what the first cannot.
A closed pipe ends the child. Each is a process of its own: peers need other versions of transformers than ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


class Turns:
    """The child's side: ``begin`` before the first step, ``tick`` after every one."""

    def __init__(self) -> None:
        # What a library prints goes to stderr; the pipe to the parent carries the protocol alone.
        self.pipe = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.granted = 0
        self.steps: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    def say(self, message: Any) -> None:
        print(json.dumps(message), file=self.pipe)

    def begin(self) -> None:
        self.say({"ready": True})
        self._wait()

    def tick(self) -> None:
        """A step is everything from the end of the one before: data, forward, backward, optimizer, bookkeeping."""
        wall, cpu = _now()
        self.steps.append((wall - self.began[0], cpu - self.began[1]))
        self.began = wall, cpu
        if len(self.steps) == self.granted:
            self.say(self.steps)
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self.granted, self.steps, self.began = int(line), [], _now()


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Player:
    """The parent's side of one child."""

    def __init__(self, python: str, module: str, words: list[str], log: IO[str]) -> None:
        # Threads of a process that waits for its turn must not spin; ours is imported from the tree at hand.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        self.child = subprocess.Popen(
            [python, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env=os.environ | quiet,
        )

    def hear(self) -> Any:
        line = self.child.stdout.readline()  # type: ignore[union-attr]
        return json.loads(line) if line else {"failed": f"ended without a word, exit status {self.child.wait()}"}

    def play(self, steps: int) -> list[list[float]]:
        self.child.stdin.write(f"{steps}\n")  # type: ignore[union-attr]
        answer = self.hear()
        if isinstance(answer, dict):
            raise RuntimeError(f"{' '.join(self.child.args)}: {answer}")  # type: ignore[arg-type]
        return answer

    def close(self) -> None:
        self.child.stdin.close()  # type: ignore[union-attr]
        try:
            self.child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()  # type: ignore[union-attr]
