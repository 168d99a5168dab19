"""Realized against declared shares in the report: as bands with dashed edges, as a table, and of a stage that was
cut."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from hf_stages.commands import cli
from hf_stages.reports.pages.report_page import save_report
from hf_stages.reports.pages.share_panels import share_panels
from hf_stages.reports.run_folder import read_run
from hf_stages.reports.run_report import run_report
from hf_stages.reports.shares import read_shares
from hf_stages.reports.tables.shares_table import shares_table
from tests.reports.folders import losses, manifest, stage

NAMES = ("a", "b", "c", "d", "e", "f")


def data(points, sources=("a", "b")):
    """As ``stage.json`` has it: of each point the progress, the realized and the declared shares."""
    totals = {
        "examples": 40, "tokens": 12_345, "share": 0.325, "declared": 0.33, "available": 10, "passes": 4.0,
    }  # fmt: skip
    over_time = [
        {"t": t, "share": dict(zip(sources, s, strict=True)), "declared": dict(zip(sources, d, strict=True))}
        for t, s, d in points
    ]
    return {"shares_of": "tokens", "sources": dict.fromkeys(sources, totals), "over_time": over_time}


RAMP = [(0.125, (0.9, 0.1), (1.0, 0.0)), (0.375, (0.75, 0.25), (0.75, 0.25)), (0.625, (0.4, 0.6), (0.5, 0.5))]


def drawn(out):
    svg, width, height = share_panels(read_shares(read_run(out)))
    return ElementTree.fromstring(f"<svg>{svg}</svg>"), width, height


def points_of(node):
    return [tuple(map(float, pair.split(","))) for pair in node.get("points").split()]


def frames(root):
    return [tuple(float(n.get(k)) for k in ("x", "y", "width", "height")) for n in root.iter("rect") if n.get("stroke")]


def declared_edges(root):
    return [n for n in root.iter("polyline") if n.find("title").text.startswith("declared, ")]


def test_bands_and_dashed_edges_follow_the_numbers(tmp_path):
    stage(tmp_path, 1, "one", losses(one=2.0), data=data(RAMP))
    manifest(tmp_path, ["one"])
    root, _, _ = drawn(tmp_path)
    [(x, y, wide, high)] = frames(root)
    # The last point stands in the middle of a quarter: the stage ended at three quarters, and nothing is drawn beyond.
    times = [0.0, 0.125, 0.375, 0.625, 0.75]
    lower, upper = [points_of(node) for node in root.iter("polygon")]
    shares = [0.9, 0.9, 0.75, 0.4, 0.4]
    top = [(x + t * wide, y + high * (1 - s)) for t, s in zip(times, shares, strict=True)]
    bottom = [(x + t * wide, y + high) for t in times]
    ceiling = [(x + t * wide, y) for t in times]
    assert lower == [pytest.approx(p, abs=0.06) for p in (*top, *reversed(bottom))]
    assert upper == [pytest.approx(p, abs=0.06) for p in (*ceiling, *reversed(top))]
    [edge] = declared_edges(root)
    assert edge.get("stroke-dasharray")
    wanted = [(x + t * wide, y + high * (1 - s)) for t, s in zip(times, [1.0, 1.0, 0.75, 0.5, 0.5], strict=True)]
    assert points_of(edge) == [pytest.approx(p, abs=0.06) for p in wanted]


def test_one_source_or_none_draws_nothing(tmp_path):
    stage(tmp_path, 1, "plain", losses(plain=2.0))
    stage(tmp_path, 2, "one", losses(plain=2.0), parent="plain", data=data([(0.5, (1.0,), (1.0,))], ("a",)))
    manifest(tmp_path, ["plain", "one"])
    run = read_run(tmp_path)
    assert read_shares(run) == []
    assert share_panels([])[2] == 0
    assert shares_table(run) == ""
    assert "Sources drawn" not in run_report(run)
    save_report(run, tmp_path / "r.html")
    assert "Sources" not in (tmp_path / "r.html").read_text()


def test_a_source_keeps_its_colour_and_nothing_overlaps(tmp_path):
    even = [(0.5, (1 / 6,) * 6, (1 / 6,) * 6)]
    stage(tmp_path, 1, "first", losses(a=2.0), data=data(RAMP, ("b", "c")))
    for i in range(2, 6):
        name = f"stage-{i}-with-a-name-that-is-far-too-long-for-a-panel"
        stage(tmp_path, i, name, losses(a=2.0), data=data(even, NAMES))
    root, width, height = drawn(tmp_path_with_manifest(tmp_path))
    places = frames(root)
    assert len(places) == 5
    for i, (x, y, wide, high) in enumerate(places):
        assert x >= 0
        assert x + wide <= width
        assert y + high + 15 <= height
        for x2, y2, _, _ in places[i + 1 :]:
            assert x2 >= x + wide or y2 >= y + high + 15 or x2 + wide <= x
    fills = {}
    for node in root.iter("polygon"):
        fills.setdefault(node.find("title").text.split(":")[0], set()).add(node.get("fill"))
    assert fills.keys() == set(NAMES)
    assert all(len(one) == 1 for one in fills.values())
    assert len(set.union(*fills.values())) == 6
    titles = [n for n in root.iter("text") if n.text.startswith("2 stage-2")]
    assert float(titles[0].get("x")) + 7 * len(titles[0].text) <= places[2][0]


def tmp_path_with_manifest(out):
    manifest(out, [folder.name[3:] for folder in sorted(out.glob("0*"))])
    return out


def test_the_table_says_what_was_drawn(tmp_path, capsys):
    stage(tmp_path, 1, "one", losses(one=2.0), data=data(RAMP))
    manifest(tmp_path, ["one"])
    assert cli.main(["report", str(tmp_path), "--save", str(tmp_path / "r.html")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"1 one +a +32.5 % \(33 %\) +90 % -> 40 % \(100 % -> 50 %\) +40 +12.3k +4\n", text)
    assert re.search(r"\n +b +32.5 % \(33 %\) +10 % -> 60 % \(0 % -> 50 %\)", text)
    page = (tmp_path / "r.html").read_text()
    assert "10 % -&gt; 60 %" in page
    assert page.count("<polygon") == 2


def test_a_run_cut_within_a_stage_shows_what_its_log_says(tmp_path, capsys):
    stage(tmp_path, 1, "one", losses(one=2.0), data=data(RAMP))
    manifest(tmp_path, ["one", "two"], "interrupted", two="waiting")  # as a cut stage is written
    held = json.loads((tmp_path / "run.json").read_text())
    held["stages"]["two"]["steps"] = 20
    (tmp_path / "run.json").write_text(json.dumps(held))
    checkpoint = tmp_path / "checkpoint-18"
    checkpoint.mkdir()
    logs = [
        {"step": 10, "stage": 1, "share_a": 0.4, "share_b": 0.6},
        {"step": 14, "stage": 2, "share_a": 0.25, "share_b": 0.75},
        {"step": 15, "stage": 2, "eval_loss": 1.0},
        {"step": 18, "stage": 2, "share_a": 0.5, "share_b": 0.5},
    ]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    first, second = read_shares(read_run(tmp_path))
    assert first.finished
    assert not second.finished
    # Stage two begins after step 10: its logs stand for its updates 0 to 4 and 4 to 8 of 20.
    assert [point.t for point in second.points] == pytest.approx([0.1, 0.3])
    assert [point.realized["a"] for point in second.points] == [0.25, 0.5]
    root, _, _ = drawn(tmp_path)
    assert len(declared_edges(root)) == 1  # of the first alone
    x, _, wide, _ = frames(root)[1]
    assert max(px for px, _ in points_of(list(root.iter("polygon"))[2])) == pytest.approx(x + 0.4 * wide, abs=0.06)
    assert cli.main(["report", str(tmp_path), "--save", str(tmp_path / "r.svg")]) == 0
    assert re.search(r"2 two +a +not finished +25 % -> 50 % +- +- +-\n", capsys.readouterr().out)


def test_a_damaged_stage_is_left_out(tmp_path):
    folder = stage(tmp_path, 1, "one", losses(one=2.0), data=data(RAMP))
    manifest(tmp_path, ["one"])
    (folder / "seal.json").unlink()
    assert read_shares(read_run(tmp_path)) == []
