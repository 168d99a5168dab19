"""``hf-stages bench``: size and speed of a model's folder on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents


def add_parser(commands: Any, parents: Parents) -> None:
    bench = commands.add_parser(
        "bench",
        parents=[parents.shared],
        help="size and speed of a packed model (or any model's folder) on this machine",
        description="Size and speed on this machine: a packed folder (or a stage's, or any model's) beside the same "
        "model in fp32 and bf16, torch's dynamic int8 and bitsandbytes. All take turns; best of the "
        "turns, median in brackets.",
    )
    bench.add_argument("folders", nargs="+", metavar="FOLDER", help="what pack, a stage or save_pretrained wrote")
    bench.add_argument("--rows", nargs="+", metavar="ROWSxTOKENS", help="what to time (1x16 1x128 32x128)")
    bench.add_argument("--ways", nargs="+", metavar="WAY", help="of: own packed fp32 bf16 int8 bnb8 bnb4 (all)")
    bench.add_argument("--tokens", type=int, default=16, help="to decode, where the model is a causal one (16)")
    bench.add_argument("--repeats", type=int, default=7, help="turns of each way in each shape (7)")
    bench.add_argument("--seconds", type=float, default=20.0, help="after which a way takes no further turn (20)")
    bench.add_argument("--threads", type=int, help="torch's own number if left out")
    bench.add_argument(
        "--save", action="store_true", help="write bench.json and a section of the model card into each folder"
    )
    bench.add_argument("--trust-remote-code", action="store_true", help="let code named by the folder run")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    from hf_stages.commands.bench_measurement import SHAPES, bench
    from hf_stages.reports.tables.bench_table import bench_table

    same = ("ways", "tokens", "repeats", "seconds", "threads", "save", "trust_remote_code")
    given = {name: getattr(options, name) for name in same}
    found = []
    for folder in options.folders:
        try:
            found.append(bench(folder, shapes=options.rows or SHAPES, **given))
        except (ValueError, ImportError) as error:
            raise Mistake from error
        if not options.json:
            print(bench_table(found[-1]) + "\n", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))
    return OK
