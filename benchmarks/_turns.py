"""Let processes that train the same step take turns, so that noise on the machine affects all of them alike.

The parent writes one line to a child: how many steps to take. The child first writes a JSON line that says what became
of it: ``{"ready": true}``, ``{"absent": reason}`` or ``{"failed": reason}``. Then it writes a line for every step of a
turn, with its seconds by the clock and in CPU time over all threads. Where others use the machine, CPU time is the
better measure. A closed pipe ends the child. Each child is a process of its own, because other libraries need other
versions of transformers than ours.
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
    """Plays the child: call ``begin`` before the first step and ``tick`` after every step."""

    def __init__(self) -> None:
        # What a library prints goes to stderr. Only the protocol goes through the pipe to the parent.
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
        """End a step. It began at the end of the one before: data, forward, backward, optimizer, bookkeeping."""
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
    """Starts one child and talks to it."""

    def __init__(self, python: str, module: str, words: list[str], log: IO[str]) -> None:
        # Threads of a process that waits for its turn must not spin. hf_stages comes from this checkout.
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
