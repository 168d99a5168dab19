"""Finds the compiled library, and says which of its paths runs."""

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
"""Of the C interface (lb_version): a library of another build is not called."""
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
    """The library, or None where there is none that fits."""
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
    """The paths that this machine can run, best first."""
    found = library()
    names: list[str] = []
    while found is not None and (name := found.lb_name(len(names)).decode()):
        names.append(name)
    return [*names, *_plain()]


@functools.cache
def which() -> str:
    """Which path runs: avx512-vnni, avx-vnni, avx2, neon-dot or scalar of the library; without it int_mm or dense.

    HF_STAGES_KERNEL forces one of them; ``none`` leaves the library out. It is read once.
    """
    wanted, there = os.environ.get(VARIABLE, ""), available()
    if not wanted:
        return there[0]
    if wanted == "none":
        return _plain()[0]
    if wanted not in [*there, "int_mm"]:
        raise ValueError(f"{VARIABLE}: expected {', '.join(there)} or none on this machine, got {wanted!r}")
    return wanted


def native() -> bytes | None:
    """The library's path that runs; None without the library."""
    name = which()
    return None if name in ("int_mm", "dense") else name.encode()


def _plain() -> list[str]:
    """torch._int_mm is fast where oneDNN has AVX512-VNNI, and a slow reference elsewhere."""
    return ["int_mm", "dense"] if "avx512_vnni" in _processor() else ["dense"]


def _processor() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
