"""What pages and pictures of the panels show, and how they are written."""

from __future__ import annotations

import builtins
import re
from xml.etree import ElementTree

import pytest

from hf_stages.reports.pages.report_page import report_html
from hf_stages.reports.panels.layout import lay_out
from hf_stages.reports.panels.page import save_panels
from hf_stages.reports.panels.run_curves import Mark, RunCurves, curves_of
from hf_stages.reports.panels.svg_panels import WIDTH, draw_panels
from hf_stages.reports.run_folder import read_run
from tests.reports.panels.logs import decision, log, staged_run

KINDS = ("good", "collapsed", "ignored")
LEDGER = [decision(20, "alert", "correlation 0.97", "TokenCollapse"), decision(50, "rollback"), decision(51, "skip")]
RUNS = [curves_of(kind, log(kind), LEDGER if kind == "collapsed" else (), [Mark(0, "stage", "1 a")]) for kind in KINDS]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(runs):
    svg, width, height = draw_panels(lay_out(runs))
    return ElementTree.fromstring(f'<svg xmlns="http://www.w3.org/2000/svg">{svg}</svg>'), width, height


def texts(root):
    return [text.text for text in root.iter(f"{SVG}text")]


def titles(root):
    return [title.text for title in root.iter(f"{SVG}title")]


def test_each_run_and_recurrence_is_a_line_named_on_hover():
    root, _, _ = drawn(RUNS)
    lines = [line.find(f"{SVG}title").text for line in root.iter(f"{SVG}polyline")]
    assert {"good, recurrence 1", "good, recurrence 64", "ignored, recurrence 32", "collapsed"} <= set(lines)
    dashes = {line.get("stroke-dasharray") for line in root.iter(f"{SVG}polyline")}
    assert len(dashes) == 6  # one of them solid


def test_decisions_are_marked_in_every_panel_that_reaches_them():
    found = titles(drawn(RUNS)[0])
    assert found.count("collapsed, step 20: alert: correlation 0.97 [TokenCollapse]") == 2  # validation begins later
    assert found.count("collapsed, step 50: rollback: because") == 2


def test_lines_are_told_apart_without_colours():
    root, _, _ = drawn(RUNS)
    assert {"A", "B", "C", "A 64", "A 1", "C 64"} <= set(texts(root))
    assert {"A  good", "recurrence 16", "alert", "rollback", "update skipped"} <= set(texts(root))


def test_nothing_is_drawn_outside_the_picture():
    root, width, height = drawn(RUNS)
    assert width == WIDTH
    for line in root.iter(f"{SVG}polyline"):
        for x, y in (map(float, point.split(",")) for point in line.get("points").split()):
            assert 0 < x < width
            assert 0 < y < height
    legend = [g.get("transform") for g in root.iter(f"{SVG}g")]
    assert max(float(re.search(r",([\d.]+)\)", place)[1]) for place in legend) < height


def crowd():
    return [RunCurves(f"run{i}", loss=((1, 3.0), (9, 2.0 + 0.001 * i))) for i in range(100)]


def test_labels_of_many_runs_stay_beside_their_panel():
    root, _, _ = drawn(crowd())
    places = [float(text.get("y")) for text in root.iter(f"{SVG}text") if text.get("font-weight") == "bold"]
    assert len(places) > 20
    assert max(places) < 40 + 270 + 10  # the panel's lower end


def test_labels_of_many_runs_stay_beside_their_panel_in_a_figure(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    seen = []
    monkeypatch.setattr(figure, "savefig", lambda self, path: seen.extend(self.axes))
    save_panels(crowd(), tmp_path / "many.png")
    places = [text.get_position()[1] for text in seen[0].texts]
    assert len(places) > 20
    assert min(places) >= -1e-9


def test_floored_and_lost_values_are_in_the_legend_only_where_they_are():
    clean, floored = (RunCurves("a", loss=((1, 2.0), (9, y))) for y in (1.0, float("nan")))
    assert "NaN or infinite" not in texts(drawn([clean])[0])
    assert "NaN or infinite" in texts(drawn([floored])[0])
    zero = RunCurves("a", correlation=((1, 0.5), (2, 0.0)))
    assert "on the floor or below" in texts(drawn([zero])[0])


@pytest.mark.parametrize("suffix", ["html", "svg", "png", "pdf"])
def test_it_is_written_in_every_format(suffix, tmp_path):
    if suffix in ("png", "pdf"):
        pytest.importorskip("matplotlib")
    path = tmp_path / f"panels.{suffix}"
    save_panels([*RUNS, RunCurves("empty<1>", loss=((0, 3.0), (7, 0.0), (8, float("nan"))))], path)
    head = path.read_bytes()[:15]
    assert head.startswith({"html": b"<!doctype html>", "svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix])
    if suffix == "html":
        page = path.read_text()
        assert "<script" not in page
        assert "empty&lt;1&gt;" in page
        assert "ppl at 64" in page


@pytest.mark.parametrize("name", ["panels.gif", "panels", "no-such-folder/panels.svg"])
def test_a_target_that_cannot_be_written_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"output: (expected a file|there is no folder)"):
        save_panels(RUNS, tmp_path / name)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "hf_stages\[report\]". HTML and SVG need nothing'):
        save_panels(RUNS, tmp_path / "panels.png")
    save_panels(RUNS, tmp_path / "panels.svg")


def test_the_report_shows_the_panels_of_a_run_that_has_them(tmp_path):
    page = report_html(read_run(staged_run(tmp_path / "watched", log("good"), LEDGER, (100, 1000))))
    assert "<h2>Health</h2>" in page
    assert "Hidden-state correlation" in page
    assert "watched: 2 part2" in page  # where the second stage begins
    plain = [{"step": step, "loss": 1.0} for step in (1, 9)]
    assert "<h2>Health</h2>" not in report_html(read_run(staged_run(tmp_path / "plain", plain, [], (9,))))
