"""The shape of the code: who may import whom, how long things may get, what must not appear."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_stages"

NOUNS = "stage duration curves ledger errors fingerprint nearest shown hub_name _after_import"
READERS = "recipe _hints sketch documented parts model_source config_errors naming dry_run _yaml origin"  # they find parts by name
PLANS = "plan cautions sizes replaying stage_args args_allowed args_values checkpoint manifest moments"
WORK = (
    "by_name raw_rows vocabulary "
    "update_loss task_probe task_trial by_source_check without_dropout loss_calls as_it_was eval_parts "
    "stage_data drawn patches columns reach forwards preparing prepared_data held_back remembered "
    "own_models own_quantizer refetch adapters adapter_base adapter_check blueprint capture attention_tap model_inputs source_collator collating stage_losses last_batch eval_terms eval_sums eval_domains measured token_bytes domains final_metrics weights_print last_evaluation rates start_metrics tracker_tags kept steering balance handover objective health "
    "unused_args flow transition teaching agreement checking stage_run stage_folder run_card checkpointing loading progress signals "
    "teacher teachers teacher_source teacher_print teacher_cache cached_teacher cache_folder row_keys top_k runner shown_signature trainer callbacks one_writer launch"
)
LEAVES = "losses layers transforms data schedules monitors gates exporters packing kernels hub reports metrics"

# What may import what of ours, lowest first. Within a line, and within a folder, all may import each other.
ALLOWED = {
    NOUNS: "",
    READERS: f"{NOUNS} {LEAVES}",
    PLANS: f"{NOUNS} {READERS} schedules data",
    WORK: f"{NOUNS} {READERS} {PLANS} {LEAVES}",
    "recipes": "*",
    "cli cli_compare cli_new reference __main__ build probe probe_lr versus versus_collators versus_run doctor bench bench_ways": "*",
    "__init__": f"{NOUNS} trainer teacher_source own_models own_quantizer",
    "losses": f"{NOUNS} layers",
    "layers": NOUNS,
    "kernels": f"{NOUNS} layers",
    "transforms": f"{NOUNS} layers",
    "data": f"{NOUNS} checkpoint teacher_print",
    "schedules": NOUNS,
    "monitors": f"{NOUNS} layers",
    "gates": NOUNS,
    "exporters": f"{NOUNS} packing layers",
    "packing": f"{NOUNS} checkpoint layers kernels loading own_models own_quantizer reports",
    "hub": f"{NOUNS} reports",
    "reports": f"{NOUNS} plan cautions sizes dry_run checkpoint losses",
    "metrics": NOUNS,
}
FILE_LINES, FUNCTION_LINES = 420, 60  # aim at 400 and 40; docstrings of functions do not count
MAY_PRINT = ("cli", "cli_compare", "cli_new", "reports", "signals")  # signals: what Ctrl-C answers, logging aside
# Paths of one machine have no place in the repository. Spelled so that this file does not match itself.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wo[r]k|ro[o]t)/|/tmp/bas[h]_jobs")

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def _unit(path: Path) -> str:
    """The file or folder right under hf_stages that a file belongs to: ``stage``, ``losses``, ``__init__``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions too; ``from a import b`` gives ``a.b``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
    return found


def _peers(unit: str) -> tuple[set[str], set[str]]:
    for line, allowed in ALLOWED.items():
        if unit in line.split():
            return set(line.split()), set(allowed.split())
    raise AssertionError(f"hf_stages/{unit} has no line in ALLOWED ({Path(__file__).name}): say what it may import")


@each_file
def test_imports_go_one_way(path: Path) -> None:
    unit = _unit(path)
    peers, allowed = _peers(unit)
    package = ".".join(("hf_stages", *path.relative_to(PACKAGE).parts[:-1]))
    for line, name in _imports(TREES[path], package):
        where = f"{path.relative_to(ROOT)}:{line}"
        top, _, rest = name.partition(".")
        if top == "hf_stages":
            target = rest.split(".")[0]
            if target == "__version__" and unit not in NOUNS.split():
                continue
            assert "*" in allowed or target in peers | allowed, f"{where}: {unit} must not import {name}"
        elif unit in NOUNS.split():
            assert top in sys.stdlib_module_names, f"{where}: the nouns import the standard library alone, not {name}"


@each_file
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines: it asks for another noun"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            length = node.end_lineno - node.lineno + 1 - docstring
            assert length <= FUNCTION_LINES, f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines"


@each_file
def test_one_public_class_per_leaf_file(path: Path) -> None:
    if _unit(path) not in LEAVES.split() or path.name.startswith("_"):
        return
    classes = [n.name for n in TREES[path].body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    functions = [n.name for n in TREES[path].body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert len(classes) <= 1, f"{path.relative_to(ROOT)}: one public class per file, found {', '.join(classes)}"
    assert not (classes and functions), f"{path.relative_to(ROOT)}: helpers start with '_': {', '.join(functions)}"


@each_file
def test_only_the_cli_and_reports_print(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert _unit(path) in MAY_PRINT, f"{path.relative_to(ROOT)}:{node.lineno}: print(); use logging"


def test_every_folder_is_a_package() -> None:
    missing = [str(p.parent.relative_to(ROOT)) for p in FILES if not (p.parent / "__init__.py").exists()]
    assert not missing, f"without __init__.py: {', '.join(sorted(set(missing)))}"


def test_no_machine_paths_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            assert not MACHINE_PATHS.search(line), f"{name}:{number}: a path of one machine: {line.strip()}"
