"""``hf-stages pack``: write a stage with its quantized layers packed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents


def add_parser(commands: Any, parents: Parents) -> None:
    pack = commands.add_parser(
        "pack",
        parents=[parents.shared],
        help="write a stage's 1-bit and 2-bit layers as one and two bits: hf-stages pack out/04-binary-logits --to "
        "packed",
        description="Write a folder with the quantized layers of a stage really packed. It loads with "
        "from_pretrained after `import hf_stages`; with --portable in stock transformers.",
    )
    pack.add_argument("folder", metavar="STAGE", help="the folder of a finished stage")
    pack.add_argument("--to", metavar="DIR", required=True, help="where to")
    pack.add_argument("--portable", action="store_true", help="in the layout that stock transformers reads by itself")
    pack.add_argument(
        "--rest", default="float16", help="dtype of what is not packed: float16 (default), bfloat16, float32"
    )
    pack.add_argument("--embeddings", choices=["int8", "keep"], default="int8", help="a vocabulary in full precision")
    pack.add_argument("--overwrite", action="store_true", help="replace DIR if it is there")
    pack.add_argument("--trust-remote-code", action="store_true", help="let code named by the stage run")
    pack.add_argument("--json", action="store_true", help="print JSON")
    pack.set_defaults(command=_pack)


def _pack(options: argparse.Namespace) -> int:
    from hf_stages.packing.pack_folder import pack

    try:
        size = pack(
            options.folder,
            options.to,
            rest=options.rest,
            embeddings=None if options.embeddings == "keep" else options.embeddings,
            portable=options.portable,
            overwrite=options.overwrite,
            trust_remote_code=options.trust_remote_code,
        )
    except (ValueError, ImportError) as error:
        raise Mistake from error
    print(json.dumps(size.to_dict(), indent=2) if options.json else f"{options.to}\n{size}")
    return OK
