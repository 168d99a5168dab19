"""Walks README.md and docs/*.md from top to bottom, each in a folder of its own, outside of the checkout."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import hf_stages
from hf_stages.planning.cautions import cautions
from hf_stages.planning.plan import Plan
from hf_stages.reports.tables import plan_table
from hf_stages.training import runner
from tests.support.pages import KINDS, PAGES, ROOT, blocks_of, walk
from tests.test_architecture import ROOMS

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _has(page: Path, *, slow: bool) -> bool:
    blocks = [b for b in blocks_of(page) if b.kind != "text" and "no-run" not in b.words]
    return any("slow" in b.words for b in blocks) if slow else bool(blocks)


def _cautions_seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What plans of the page warn of, as it runs: a guide must not lead to what a caution advises against."""
    seen: list[str] = []

    def recorded(plan: Plan) -> dict[str, list[str]]:
        found = cautions(plan)
        seen.extend(f"{stage}: {line}" for stage, lines in found.items() for line in lines)
        return found

    for module in (runner, plan_table):
        monkeypatch.setattr(module, "cautions", recorded)
    return seen


@pytest.mark.parametrize("page", [page for page in PAGES if _has(page, slow=False)], ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raised = _cautions_seen(monkeypatch)
    walk(page, slow=False)
    assert not raised, f"{page.name} shows what the plan warns of: {raised}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if _has(page, slow=True)], ids=lambda page: page.name)
def test_a_page_runs_with_its_slow_lines(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    walk(page, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    unknown = [f"{page.name}:{b.line}: {b.kind!r}" for b in blocks_of(page) if b.kind not in KINDS]
    assert not unknown, f"expected {', '.join(sorted(KINDS))}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_imports_what_a_wheel_lacks(page: Path) -> None:
    code = "".join(block.code for block in blocks_of(page) if block.kind == "python")
    assert "from examples" not in code
    assert "from tests" not in code


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.name)
def test_what_has_a_flat_name_is_imported_by_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    codes = [text] if page.suffix == ".py" else [b.code for b in blocks_of(page) if b.kind == "python"]
    imports = [node for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    rooms = [node for node in imports if node.module and node.module.startswith("hf_stages.")]
    flat = [f"{node.module}: {alias.name}" for node in rooms for alias in node.names if alias.name in dir(hf_stages)]
    assert not flat, f"{page.name}: import these from hf_stages itself: {', '.join(flat)}"


def test_the_tree_of_the_readme_is_the_list_of_rooms() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("```text\nhf_stages/\n")[2].partition("```")[0]
    shown = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    assert shown == [room for line in ROOMS for room in line.split()]


def test_the_readme_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Guides")[2].partition("## The tree")[0]
    assert {f"docs/{page.name}" for page in PAGES[1:]} == set(re.findall(r"\]\(([^)]+)\)", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = {target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")}
    gone = [t for t in sorted(targets) if not _leads(page, *t.partition("#")[::2])]
    assert not gone, f"{page.name}: links that lead nowhere: {', '.join(gone)}"


def _leads(page: Path, name: str, anchor: str) -> bool:
    path = page.parent / name if name else page
    if not path.exists() or not anchor:
        return path.exists()
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}
