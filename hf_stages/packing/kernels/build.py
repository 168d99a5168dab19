"""Compile the kernels' library, next to this file: ``python -m hf_stages.packing.kernels.build``.

``pip install`` does it where it finds a C compiler. Nothing is compiled at import. This file imports only the standard
library, because setup.py loads it by its path.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "_lowbit.dylib" if sys.platform == "darwin" else "_lowbit.so"
# No fused multiply-add: all paths must round in the same places.
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]


def compiler() -> list[str]:
    """Return the command of the C compiler: $CC, else cc, gcc or clang; empty where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named if shutil.which(named[0]) else []
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), [])


def compile_library(target: Path) -> None:
    """Compile the library to ``target``. Raise RuntimeError where that fails; then nothing is written."""
    command = compiler()
    if sys.platform == "win32" or not command:
        raise RuntimeError("there is no C compiler (cc, gcc, clang, or what CC names)")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    sources = [str(path) for path in sorted((HERE / "csrc").glob("*.c"))]
    try:
        subprocess.run(
            [*command, *FLAGS, *sources, "-o", str(part), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        part.replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        part.unlink(missing_ok=True)
        output = getattr(error, "stderr", None) or error
        raise RuntimeError(f"{command[0]} failed: {output}") from error


def wheel_platform(platform: str, library: Path) -> str:
    """Return the platform tag of a wheel with the library: on Linux, the oldest glibc that it runs with (PEP 600).

    Package indexes refuse a plain ``linux_x86_64``, which does not say that. The library needs only libc, so the
    versions of its symbols show it. Under musl symbols have no versions, and the tag stays.
    """
    needed = [tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_(\d+\.\d+)", library.read_bytes())]
    if not platform.startswith("linux_") or not needed:
        return platform
    major, minor = max((2, 17), *needed)
    return f"manylinux_{major}_{minor}_{platform.removeprefix('linux_')}"


def main() -> int:
    """Build the library; return 1 where that fails."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        compile_library(HERE / NAME)
    except RuntimeError as error:
        logging.error("hf_stages kernels were not built: %s", error)
        return 1
    logging.info("built %s", HERE / NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
