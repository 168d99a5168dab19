"""The shape of the code: which rooms there are, who may import whom, how long things may get, what must not appear."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_stages.core.registry import list_parts

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_stages"

# The rooms from the ground up, each with what stands on its line: a room imports from earlier lines and from itself, no
# more.
ROOMS = (
    "core",  # nouns, time, names, whole folders
    "layers",  # modules that stand in for a model's own
    "models",  # models built, read and observed
    "losses transforms schedules gates monitors",  # parts of a stage, which know nothing of each other
    "data",  # sources, curricula, collators
    "teachers",  # declared, live, cached
    "recipes",  # a run as a file, and ready runs
    "planning",  # everything before the first step
    "reports",  # finished folders as text, pictures, cards
    "packing",  # one or two bits a weight on disk and in memory, kernels, other programs' formats
    "evaluation",  # what is measured and how
    "hub",  # what a run shows of itself on the Hub
    "training",  # a run
    "commands",  # hf-stages ...
)
LINE = {room: number for number, line in enumerate(ROOMS) for room in line.split()}
CORE_MAY_IMPORT = {"torch", "numpy", "transformers", "accelerate", "xxhash", "filelock"}
CLASS_FIELDS, CLASS_METHODS = 12, 18
TEST_FILE_LINES = 400
FILE_LINES, FUNCTION_LINES = 420, 60  # aim at 400 and 40; docstrings of functions do not count
MAY_PRINT = ("commands", "reports")
# Paths of one machine have no place in the repository. Spelled so that this file does not match itself.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wo[r]k|ro[o]t)/|/tmp/bas[h]_jobs")

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def _imports(path: Path) -> list[tuple[int, str, str]]:
    """(line, module, name) of every import of ours, those inside functions too. ``from a import b`` of a module b is
    module a.b."""
    found = []
    for node in ast.walk(TREES.get(path) or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno}: imports say where from: hf_stages...."
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((node.lineno, inner, "") if inner in MODULES else (node.lineno, node.module, alias.name))
    return [entry for entry in found if entry[1].split(".")[0] == "hf_stages"]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _private(module: str, name: str) -> bool:
    parts = [*module.split(".")[1:], name]
    return any(part.startswith("_") and not part.startswith("__") for part in parts)


MODULES = {_module(path): path for path in FILES}


def test_the_root_holds_rooms_alone() -> None:
    held = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert held == {*LINE, "__init__.py", "__main__.py", "py.typed"}
    assert len(LINE) <= 18


def test_each_room_says_what_lives_there() -> None:
    for room in LINE:
        docstring = ast.get_docstring(TREES[PACKAGE / room / "__init__.py"]) or ""
        assert len(docstring.split()) >= 8, (
            f"hf_stages/{room}/__init__.py: say in a line what lives here and what does not"
        )


@each_file
def test_imports_go_one_way(path: Path) -> None:
    own = _room(_module(path))
    for line, module, _ in _imports(path):
        room = _room(module)
        if own in ("", "__main__") or room == own:  # the root gives names of all rooms, when they are asked for
            continue
        where = f"{path.relative_to(ROOT)}:{line}"
        assert room in LINE, f"{where}: {module} is in no room"
        assert LINE[room] < LINE[own], f"{where}: {own} must not import {module}: what both need moves down"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_the_core_imports_little(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for top in (name.split(".")[0] for name in names):
            known = {"hf_stages", *sys.stdlib_module_names, *CORE_MAY_IMPORT}
            assert top in known, f"{path.relative_to(ROOT)}:{node.lineno}: the core does not import {top}"


OTHERS = sorted(path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", [*FILES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_private_stays_in_its_room(path: Path) -> None:
    own = _room(_module(path)) if path in TREES else None
    for line, module, name in _imports(path):
        if _room(module) != own:
            assert not _private(module, name), f"{path.relative_to(ROOT)}:{line}: {module}.{name} is another room's own"


# Folders of tests that are no room: shared helpers, processes of their own, whole examples, a run of the version
# before.
TEST_FOLDERS = {"support", "workers", "examples", "version_before"}


def test_the_tests_mirror_the_rooms() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    assert folders <= {*LINE, *TEST_FOLDERS}, f"tests/: no room is called {folders - {*LINE, *TEST_FOLDERS}}"
    for path in (ROOT / "tests").rglob("test_*.py"):
        room, *inner = path.relative_to(ROOT / "tests").parts[:-1] or ["core"]
        if room in LINE:
            assert PACKAGE.joinpath(room, *inner).is_dir(), f"{path.relative_to(ROOT)}: hf_stages has no such folder"


def test_files_of_tests_stay_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    long = [f"{path.relative_to(ROOT)} has {count} lines" for path, count in lines.items() if count > TEST_FILE_LINES]
    assert not long, f"{', '.join(long)}: expected at most {TEST_FILE_LINES}; split them by topic"


def test_tests_share_helpers_and_not_each_other() -> None:
    for path in (ROOT / "tests").glob("*/**/*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{path.relative_to(ROOT)}:{number}"
            assert not re.match(r"from tests\.\w+(\.\w+)*\.test_\w+ import", line), (
                f"{where}: what several tests use stands beside them in a file without test_, or in tests/support"
            )


def test_no_imports_in_a_circle() -> None:
    """Imports inside functions count: they hide a circle, they do not open it."""
    seen: set[str] = set()
    arrows = {_module(path): {m for _, m, _ in _imports(path)} for path in FILES if path.name != "__init__.py"}

    def walk(module: str, way: list[str]) -> None:
        assert module not in way, "imports in a circle: " + " -> ".join([*way[way.index(module) :], module])
        if module not in seen:
            for other in sorted(arrows.get(module, ())):
                walk(other, [*way, module])
            seen.add(module)

    for module in arrows:
        walk(module, [])


@pytest.mark.parametrize(
    "kind",
    ["losses", "transforms", "schedules", "gates", "actions", "notifiers", "monitors", "data", "metrics", "exporters"],
)
def test_a_part_has_a_file_of_its_own(kind: str) -> None:
    for module, name in list_parts(kind):
        body = TREES[MODULES[module]].body
        public = [n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name[0] != "_"]
        assert public == [name], f"{module}: {name} shares its file with {', '.join(set(public) - {name})}"


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


def _fields(node: ast.ClassDef) -> set[str]:
    """Names declared in the class, and those that its methods set on ``self``."""
    declared = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    stored = (n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return declared | {n.attr for n in stored if isinstance(n.value, ast.Name) and n.value.id == "self"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "training").rglob("*.py")), ids=lambda p: p.name)
def test_what_runs_a_stage_stays_small(path: Path) -> None:
    """Mixins count apart from the class that they make, and what a base or Trainer itself holds does not count."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    held = set(re.findall(r"self\.(\w+)", Path(spec.origin).with_name("trainer.py").read_text(encoding="utf-8")))
    classes = {n.name: n for tree in TREES.values() for n in tree.body if isinstance(n, ast.ClassDef)}
    for node in (n for n in TREES[path].body if isinstance(n, ast.ClassDef)):
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        inherited = held.union(*(_fields(classes[name]) for name in bases if name in classes))
        fields, methods = _fields(node) - inherited, [n for n in node.body if isinstance(n, ast.FunctionDef)]
        assert len(fields) <= CLASS_FIELDS, f"{node.name} has {len(fields)} fields: {', '.join(sorted(fields))}"
        assert len(methods) <= CLASS_METHODS, f"{node.name} has {len(methods)} methods"


@each_file
def test_only_the_cli_and_reports_print(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert _room(_module(path)) in MAY_PRINT, f"{path.relative_to(ROOT)}:{node.lineno}: print(); use logging"


def test_every_folder_is_a_package() -> None:
    missing = [str(p.parent.relative_to(ROOT)) for p in FILES if not (p.parent / "__init__.py").exists()]
    assert not missing, f"without __init__.py: {', '.join(sorted(set(missing)))}"


def test_no_machine_paths_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".bin", ".npy", ".pt", ".pth", ".safetensors", ".png", ".arrow"):
            continue
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            assert not MACHINE_PATHS.search(line), f"{name}:{number}: a path of one machine: {line.strip()}"
