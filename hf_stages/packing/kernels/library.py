"""Find the compiled library, and say which of its paths runs."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

VARIABLE = "HF_STAGES_KERNEL"
VERSION = 2
"""The version of the C interface (lb_version). A library of another version is not used."""
HOW = "pip install -e . or python -m hf_stages.packing.kernels.build (both need a C compiler)"
_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "lb_linear": [ctypes.c_char_p, _I, *[_P] * 6, *[_L] * 4, *[_I] * 5, _F, _F],
    "lb_call": [_P, _I, _P, _P, _L],
    "lb_exact": [ctypes.c_char_p, _I, *[_P] * 5, *[_L] * 4, _I, _I],
    "lb_dense": [_I, *[_P] * 3, *[_L] * 5, _I, _I],
    "lb_sums": [_P, _L, _L, _L, _I, _P],
    "lb_name": [_I],
}


@functools.cache
def library() -> Any:
    """Load the library; None where there is none of this version."""
    path = Path(__file__).with_name("_lowbit.dylib" if sys.platform == "darwin" else "_lowbit.so")
    if not path.exists():
        return None
    try:
        found = ctypes.CDLL(str(path))
        version = found.lb_version()
    except (OSError, AttributeError) as error:
        logger.warning("%s cannot be used (%s); %s", path, error, HOW)
        return None
    if version != VERSION:
        logger.warning("%s is of another version of hf_stages; build it anew: %s", path, HOW)
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes = arguments
    found.lb_name.restype = ctypes.c_char_p
    return found


def available() -> list[str]:
    """List the paths that this machine can run, the fastest first."""
    found = library()
    names: list[str] = []
    while found is not None and (name := found.lb_name(len(names)).decode()):
        names.append(name)
    return [*names, *_torch_paths()]


@functools.cache
def which() -> str:
    """Return the path that runs: avx512-vnni, avx-vnni, avx2, neon-dot or scalar; without the library int_mm or dense.

    The environment variable HF_STAGES_KERNEL forces one of them; ``none`` ignores the library. It is read once.
    """
    wanted, known = os.environ.get(VARIABLE, ""), available()
    if not wanted:
        return known[0]
    if wanted == "none":
        return _torch_paths()[0]
    if wanted not in [*known, "int_mm"]:
        raise ValueError(f"{VARIABLE}: expected {', '.join(known)} or none on this machine, got {wanted!r}")
    return wanted


def library_path() -> bytes | None:
    """Return the path of the library that runs; None where it is not used."""
    name = which()
    return None if name in ("int_mm", "dense") else name.encode()


def _torch_paths() -> list[str]:
    """List the paths in torch: its _int_mm is fast only where oneDNN has AVX512-VNNI."""
    return ["int_mm", "dense"] if "avx512_vnni" in cpu_description() else ["dense"]


def cpu_description() -> str:
    """Return what Linux says about the processor; empty on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
