"""Run one arm of distill_step in a process of its own: ``python -m benchmarks._distill_arm TASK ARM BATCH LENGTH``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback

from benchmarks._turns import Turns


def main() -> None:
    task, name, batch, length = sys.argv[1:]
    turns = Turns()
    try:
        from benchmarks import _distill_task, _ours, _peers

        arm = {**_distill_task.ARMS, **_peers.ARMS, **_ours.ARMS}[name]
        with tempfile.TemporaryDirectory() as out:
            arm(task, argparse.Namespace(batch=int(batch), length=int(length)), turns, out)
    except ImportError as error:
        traceback.print_exc()
        turns.say({"absent": str(error)})
    except Exception as error:
        traceback.print_exc()
        turns.say({"failed": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
