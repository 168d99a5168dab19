"""``hf-stages doctor``: versions against the supported ranges, devices, optional parts. Nothing is downloaded."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from hf_stages.commands.command_line import FAILED, OK, Parents

# Equal to setup.cfg (a test compares them): a checkout that was never installed has no metadata to read.
REQUIRED = {
    "torch": ">=2.6",
    "transformers": ">=5.19,<6",
    "accelerate": ">=1.10",
    "datasets": ">=4.0",
    "safetensors": ">=0.5",
    "numpy": ">=1.26",
    "pyyaml": ">=6.0",
    "xxhash": ">=3.0",
    "filelock": ">=3.12",
    "typing-extensions": ">=4.0",
}
OPTIONAL = {
    "bitsandbytes": ("bnb", ">=0.49", "8-bit optimizers, 4-bit base models"),
    "peft": ("lora", ">=0.18", "AddLora, MergeLora"),
    "matplotlib": ("report", ">=3.8", "pictures of plans and reports"),
    "huggingface_hub": ("hub", ">=1.0", "publishing"),
    "evaluate": ("metrics", ">=0.4.5", "metrics by name"),
    "scikit-learn": ("metrics", ">=1.4", "metrics by name"),
    "scipy": ("metrics", ">=1.11", "metrics by name"),
    "trl": ("trl", ">=1.10", "staged SFTTrainer"),
    "gguf": ("gguf", ">=0.19", "exports for llama.cpp"),
    "onnx": ("onnx", ">=1.17", "exports for onnxruntime"),
    "onnxruntime": ("onnx", ">=1.31", "running them"),
}
PYTHON = ">=3.10"


@dataclass(frozen=True)
class Package:
    """One package: the version found, the range supported, and how to mend it."""

    name: str
    version: str | None
    supported: str
    ok: bool
    required: bool
    purpose: str = ""
    fix: str = ""


def examine() -> dict[str, Any]:
    """Return the findings as plain data. ``ok`` is False where a required part is missing or out of range."""
    packages = [_required(name, wanted) for name, wanted in REQUIRED.items()]
    packages += [_optional(name, *known) for name, known in OPTIONAL.items()]
    python = platform.python_version()
    python_ok = _within(python, PYTHON)
    from hf_stages.core.version import __version__

    return {
        "schema": 1,
        "ok": python_ok and all(package.ok for package in packages if package.required),
        "hf_stages": __version__,
        "python": {"version": python, "supported": PYTHON, "ok": python_ok, "executable": sys.executable},
        "platform": platform.platform(),
        "packages": [asdict(package) for package in packages],
        "devices": _devices(),
        "kernels": _kernels(),
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
    }


def render(found: dict[str, Any]) -> str:
    """Return the findings as text."""
    python = found["python"]
    mark = "ok" if python["ok"] else f"NOT SUPPORTED, expected {python['supported']}"
    lines = [f"hf_stages {found['hf_stages']} on {found['platform']}", f"python {python['version']}: {mark}", ""]
    for package in found["packages"]:
        lines.append(_line(package))
    lines += ["", *_device_lines(found["devices"]), _kernel_line(found["kernels"])]
    if found["offline"]:
        lines.append("HF_HUB_OFFLINE is set: models and datasets come from disk alone")
    lines.append("The Hub was not contacted: whether it can be reached is not tested here.")
    lines += ["", "All that is required is there." if found["ok"] else "Something required is missing: see above."]
    return "\n".join(lines)


def _line(package: dict[str, Any]) -> str:
    head = f"  {package['name']:<16} {package['version'] or '-':<14} "
    if package["ok"]:
        return head + "ok"
    if package["required"]:
        problem = "MISSING" if package["version"] is None else f"OUT OF RANGE, expected {package['supported']}"
        return f"{head}{problem}: {package['fix']}"
    problem = "not installed" if package["version"] is None else f"too old, expected {package['supported']}"
    return f"{head}{problem} ({package['purpose']}): {package['fix']}"


def _device_lines(devices: dict[str, Any]) -> list[str]:
    if "error" in devices:
        return [f"devices: unknown ({devices['error']})"]
    cpu = devices["cpu"]
    lines = [f"CPU: {cpu['cores']} cores, {cpu['threads']} threads for torch, capability {cpu['capability']}"]
    for gpu in devices["cuda"]:
        lines.append(f"GPU {gpu['index']}: {gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, compute {gpu['capability']}")
    if len(devices["cuda"]) > 1:
        lines.append("Several GPUs: start one process per GPU with torchrun --nproc-per-node")
    if devices["mps"]:
        lines.append("GPU: Apple MPS")
    if not devices["cuda"] and not devices["mps"]:
        lines.append("No GPU: training runs on the CPU")
    return lines


def _kernels() -> dict[str, Any]:
    try:
        from hf_stages.packing.kernels import library

        return {"built": library.library() is not None, "runs": library.which()}
    except Exception as error:  # without torch, or with a wrong HF_STAGES_KERNEL
        return {"error": str(error)}


def _kernel_line(kernels: dict[str, Any]) -> str:
    if "error" in kernels:
        return f"packed layers: unknown ({kernels['error']})"
    line = f"packed layers: {kernels['runs']}"
    if kernels["built"]:
        return line
    return f"{line}; the kernels' library is not built: pip install -e . or python -m hf_stages.packing.kernels.build"


def _required(name: str, wanted: str) -> Package:
    version = _version(name)
    ok = version is not None and _within(version, wanted)
    return Package(name, version, wanted, ok, True, fix="" if ok else f'pip install "{name}{wanted}"')


def _optional(name: str, extra: str, wanted: str, purpose: str) -> Package:
    version = _version(name)
    ok = version is not None and _within(version, wanted)
    return Package(name, version, wanted, ok, False, purpose, "" if ok else f'pip install "hf_stages[{extra}]"')


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _within(version: str, wanted: str) -> bool:
    """Tell whether a version lies in a range; a development build of a supported version counts.

    >>> _within("5.23.0", ">=5.19,<6"), _within("6.0.0", ">=5.19,<6"), _within("2.13.0+cpu", ">=2.6")
    (True, False, True)
    """
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways; the doctor must still report
        return {"error": f"torch cannot be imported: {error}"}
    cuda = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        entry = {"index": index, "name": properties.name, "memory": properties.total_memory, "capability": capability}
        cuda.append(entry)
    return {
        "cpu": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "cuda": cuda,
        "mps": bool(torch.backends.mps.is_available()),
    }


def add_parser(commands: Any, parents: Parents) -> None:
    doctor = commands.add_parser("doctor", parents=[parents.shared], help="what this machine has and what is missing")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    found = examine()
    print(json.dumps(found, indent=2) if options.json else render(found))
    return OK if found["ok"] else FAILED
