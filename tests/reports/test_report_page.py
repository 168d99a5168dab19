"""The page of a run: what it trained with, what it looked like, nothing clipped."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hf_stages.reports.pages.report_page import report_html
from hf_stages.reports.pages.svg import curves, document, round_step
from hf_stages.reports.run_folder import read_run
from tests.reports.folders import losses, manifest, stage

ARGS = {
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch",
    "seed": 7,
}
ABOUT = {
    "versions": {"hf_stages": "0.1.0", "torch": "2.9", "transformers": "5.20"},
    "base": {
        "class": "transformers.models.llama.modeling_llama:LlamaForCausalLM",
        "config": {"hidden_size": 64, "num_hidden_layers": 3},
    },
    "size": {"weights": 22_000},
    "declared": {"args": ARGS},
    "lr_peak": 1e-4,
    "lr_end": 2e-5,
    "stage": {
        "until": "2 epochs",
        "loss": [{"use": "TaskLoss"}, {"use": "LogitKL", "temperature": 2.0}],
        "transforms": [{"use": "ReduceLayers", "keep": [1, 3]}],
        "schedule": {"use": "Rewarm", "to": 1e-4},
    },
}


@pytest.fixture
def out(tmp_path):
    stage(tmp_path, 1, "prose", losses(prose=2.0), **ABOUT)
    stage(tmp_path, 2, "code", losses(prose=2.5), parent="prose", **ABOUT)
    manifest(
        tmp_path,
        ["prose", "code"],
        ledger=({"step": 15, "stage": "code", "kind": "cut_lr", "reason": "it rose", "by": "F"},),
    )
    return tmp_path


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.cells, self._open = [], False

    def handle_starttag(self, tag, attrs):
        self._open = tag in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells.append(data)
            self._open = False


def cells(page):
    parser = Cells()
    parser.feed(page)
    return parser.cells


def test_the_page_says_when_with_what_and_how(out):
    page = report_html(read_run(out))
    found = cells(page)
    assert any(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", cell) for cell in found)
    assert "hf_stages 0.1.0, torch 2.9, transformers 5.20" in found
    assert "LlamaForCausalLM, 22k weights, num_hidden_layers 3, hidden_size 64" in found
    for wanted in (
        "2 epochs",
        "TaskLoss + LogitKL(temperature=2.0)",
        "ReduceLayers(keep=1, 3)",
        "1e-4 -> 2e-5",
        "8 x 4",
        "7",
    ):
        assert wanted in found
    assert "Rewarm(to=0.0001)" in found
    assert "Training loss over steps" in page


def test_a_run_that_says_nothing_of_itself_has_a_page(tmp_path):
    stage(tmp_path, 1, "prose", {})
    manifest(tmp_path, ["prose"])
    page = report_html(read_run(tmp_path))
    assert "Settings" not in page
    assert "1 prose" in cells(page)


def test_what_is_wide_scrolls_and_is_not_shrunk(out):
    page = report_html(read_run(out))
    assert page.count("<svg") == page.count('<div class="wide"><svg')
    assert page.count("<table") == page.count('<div class="wide"><table')
    screen = page.split("@media print")[0]
    assert "svg{max-width" not in screen
    assert ".wide{overflow-x:auto}" in screen


def drawn(lines, *args, **options):
    root = ElementTree.fromstring(document([curves(lines, "title", *args, **options)]))
    return root, list(root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("last", [1, 7, 23, 997, 12_345, 1_000_001])
@pytest.mark.parametrize(("low", "high"), [(3.454, 4.292), (0.00012, 0.0187), (5, 5), (-0.3, 120.7), (1e4, 3.7e6)])
def test_ticks_are_round(low, high, last):
    _, texts = drawn({"a": [(0, low), (last, high)]}, [(0, "1 a")])
    for anchor, least in (("end", low), ("middle", 0)):
        told = [
            text.text.replace(",", "") for text in texts if text.get("text-anchor") == anchor and text.text != "steps"
        ]
        ticks = sorted(map(float, told))
        assert len(ticks) >= 2
        every = ticks[1] - ticks[0]
        assert float(f"{every:.4e}"[:6]) in (1, 2, 5)
        for value in ticks:
            assert value / every == pytest.approx(round(value / every), abs=1e-6)
        assert ticks[0] <= least


@pytest.mark.parametrize(("span", "most"), [(0.37, 5), (24, 6), (1, 1), (999, 7), (1e-7, 5), (3.2e9, 8)])
def test_a_round_step_is_1_2_or_5(span, most):
    step = round_step(span, most)
    assert f"{step:e}"[0] in "125"
    assert float(f"{step:e}"[:8]) in (1, 2, 5)
    assert step * most >= span * (1 - 1e-9)
    assert step * most <= 10 * span


def test_triangles_have_a_legend():
    marks = [(3, "rollback: a"), (5, "cut_lr: b"), (6, "rollback: c")]
    _, texts = drawn({"a": [(0, 1), (9, 2)]}, [], marks)
    assert "a decision (rollback, cut_lr); its reason shows on hover" in [text.text for text in texts]
    _, texts = drawn({"a": [(0, 1), (9, 2)]}, [])
    assert not any("decision" in text.text for text in texts)


def test_a_long_legend_takes_rows_and_stays_within():
    names = [f"evaluation-set-with-a-long-name-{i}" for i in range(12)]
    root, texts = drawn({name: [(0, 1), (9, 2)] for name in names}, [])
    assert {text.text for text in texts} >= set(names)
    width, height = float(root.get("width")), float(root.get("height"))
    groups = [
        g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.find("{http://www.w3.org/2000/svg}rect") is not None
    ]
    assert len(groups) == 12
    for group in groups:
        x, y = map(float, group.get("transform").removeprefix("translate(").rstrip(")").split(","))
        assert x + 17 + 6 * 32 < width
        assert y < height


def test_names_of_short_stages_do_not_run_into_each_other():
    edges = [(10.0 * i, f"{i + 1} stage-{i}") for i in range(20)]
    _, texts = drawn({"a": [(0, 1), (200, 2)]}, edges)
    shown = [t for t in texts if t.get("fill") == "#888888" and t.text != "steps"]
    ends = sorted((float(t.get("x")), float(t.get("x")) + 6 * len(t.text)) for t in shown)
    assert len(ends) == 20
    assert all(end <= start + 1 for (_, end), (start, _) in itertools.pairwise(ends))
