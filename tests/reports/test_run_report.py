"""The report reads folders alone: whole, unfinished and damaged ones."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hf_stages.commands import cli
from hf_stages.reports.domain_matrix import domain_matrix
from hf_stages.reports.matrix import START, matrix_of
from hf_stages.reports.pages.report_page import save_report
from hf_stages.reports.run_folder import read_run
from hf_stages.reports.run_report import run_report
from tests.reports.folders import losses, manifest, stage


@pytest.fixture
def out(tmp_path):
    """Three stages; the third goes on from the first."""
    out = tmp_path / "run <1>"
    out.mkdir()
    stage(out, 1, "prose", losses(prose=2.0, code=3.5, tools=5.0), domains_start=losses(prose=4.0, code=4.0, tools=5.5))
    stage(out, 2, "code", losses(prose=2.5, code=1.5, tools=4.5), parent="prose")
    stage(out, 3, "tools", losses(prose=2.2, code=3.6, tools=1.0), parent="prose")
    ledger = [
        {
            "step": 12,
            "stage": "code",
            "kind": "cut_lr",
            "reason": "prose rose & fell",
            "by": "Forgetting",
            "value": 0.5,
        },
        {"step": 20, "stage": "code", "kind": "end", "reason": "10 steps done", "by": "until"},
    ]
    manifest(out, ["prose", "code", "tools"], ledger=ledger)
    return out


def test_forgetting_and_transfer_by_their_formulas(out):
    matrix = matrix_of(read_run(out))
    assert matrix.rows == (START, "prose", "code", "tools")
    assert matrix.domains == ("prose", "code", "tools")
    # Along a stage's own branch: code is no ancestor of tools.
    assert matrix.branch("tools") == ["tools", "prose", START]
    assert matrix.forgotten("code", "prose") == pytest.approx(0.5)
    assert matrix.forgotten("tools", "prose") == pytest.approx(0.2)
    assert matrix.forgotten("tools", "code") == pytest.approx(0.1)
    assert matrix.forgotten("prose", "prose") == 0
    assert matrix.backward("prose") == pytest.approx(2.0 - 2.2)
    assert matrix.backward("code") is None  # the last stage does not stand on it
    assert matrix.backward("tools") is None
    assert matrix.forward("code") == pytest.approx(4.0 - 3.5)
    assert matrix.forward("tools") == pytest.approx(5.5 - 5.0)
    assert matrix.forward("prose") is None
    found = domain_matrix(out)["metrics"]
    assert found["loss"]["mean_forward"] == pytest.approx(0.5)
    assert found["loss"]["mean_backward"] == pytest.approx(-0.2)
    assert found["bits_per_byte"]["forgetting"]["code"]["prose"] == pytest.approx(0.25)
    assert found["accuracy"] == {"values": {r: dict.fromkeys(matrix.domains, 0.5) for r in matrix.rows}}


def test_text_has_stages_matrix_transfer_and_decisions(out, capsys):
    assert cli.main(["report", str(out)]) == 0
    text = capsys.readouterr().out
    assert "The run is done." in text
    assert re.search(r"2 code +2.5 \+0.5 +1.5\* +4.5", text)
    assert re.search(r"mean +-0.2 +\+0.5", text)
    assert "step 12, code: rate cut: prose rose & fell [Forgetting]" in text
    assert "10 steps done" not in text
    assert "Bits per byte (+" in text
    assert "accuracy" in text
    assert cli.main(["report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == domain_matrix(out)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") or "url(" in str(value)]


def test_page_stands_alone(out, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert cli.main(["report", str(out), "--save", str(page)]) == 0
    text = page.read_text()
    parser = Links()
    parser.feed(text)
    assert parser.outside == []
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert "run &lt;1&gt;" in text
    assert "prose rose &amp; fell" in text
    assert text.count("polyline") >= 2
    assert "2.5  +0.5" in text


def test_picture_is_wellformed_and_has_every_cell_edge_and_mark(out, tmp_path):
    picture = tmp_path / "report.svg"
    save_report(read_run(out), picture)
    texts = [node.text for node in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("before training", "1 prose", "2 code", "3 tools", "3.6  +0.1", "Learning rate"):
        assert wanted in texts
    titles = [node.text for node in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}title")]
    assert "rate cut: prose rose & fell [Forgetting]" in titles
    with pytest.raises(ValueError, match=r"ends in .html or .svg, got 'x.pdf'"):
        save_report(read_run(out), "x.pdf")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "stage.json").write_text('{"schema": 1'), "stage.json: not readable as JSON"),
        (lambda folder: (folder / "stage.json").write_text('{"schema": 1}'), "stage.json has"),
        (lambda folder: (folder / "seal.json").unlink(), "not written to its end"),
        (lambda folder: shutil.rmtree(folder), "said to be done, but there is no stage.json"),
        (lambda folder: shutil.rmtree(folder / "training_state"), "trainer_state.json is missing"),
    ],
)
def test_a_damaged_stage_is_named_and_left_out(out, tmp_path, damage, words, capsys):
    damage(out / "02-code")
    assert cli.main(["report", str(out), "--save", str(tmp_path / "r.html")]) == 0
    text = capsys.readouterr().out
    assert words in text
    assert re.search(r"2 code +- +- +- +damaged", text)
    assert domain_matrix(out)["metrics"]["loss"]["values"].keys() == {START, "prose", "tools"}
    assert words in (tmp_path / "r.html").read_text().replace("&#x27;", "'")


def test_an_unfinished_run_shows_what_its_checkpoint_logged(out, tmp_path, capsys):
    shutil.rmtree(out / "03-tools"), shutil.rmtree(out / "02-code")
    manifest(out, ["prose", "code", "tools"], "interrupted", code="running", tools="waiting")
    checkpoint = out / "checkpoint-15"
    checkpoint.mkdir()
    logs = [{"step": 0, "stage": 1, "start_prose_loss": 4.0}, {"step": 15, "stage": 2, "eval_prose_loss": 2.75}]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    (out / "checkpoint-16").mkdir()
    (out / "checkpoint-16" / "trainer_state.json").write_text('{"log_hist')
    assert cli.main(["report", str(out), "--save", str(tmp_path / "r.svg")]) == 0
    text = capsys.readouterr().out
    assert "The run is interrupted." in text
    assert re.search(r"2 code +0 +- +- +cut, not saved", text)
    assert "prose: 2.75 after step 15" in (tmp_path / "r.svg").read_text()


def test_a_run_before_its_first_stage(tmp_path, capsys):
    manifest(tmp_path, ["prose"], "running", prose="running")
    assert cli.main(["report", str(tmp_path), "--save", str(tmp_path / "r.html")]) == 0
    assert "No evaluation sets were measured" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path), "--save", str(tmp_path / "r.svg")]) == 2
    assert "nothing was measured yet" in capsys.readouterr().err


def test_a_lost_manifest_is_said_and_the_folders_are_read(out, capsys):
    (out / "run.json").write_text("{")
    assert cli.main(["report", str(out)]) == 0
    text = capsys.readouterr().out
    assert "run.json: not readable as JSON" in text
    assert "2 code" in text


def test_no_run_there(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "expected a run's folder, but there is no run.json" in capsys.readouterr().err


def test_benches_are_shown_where_they_are(out):
    (out / "02-code" / "bench.json").write_text('{"schema": 1}')
    assert "bench.json: cannot be shown" in run_report(read_run(out))


def test_a_run_in_its_first_stage_says_that_nothing_has_ended(tmp_path):
    manifest(tmp_path, ["prose"], status="running", prose="running")
    assert "No evaluation sets were measured" in run_report(read_run(tmp_path))
    logs = [{"step": 0, "stage": 1, "start_prose_loss": 4.0}]
    run = replace(read_run(tmp_path), logs=tuple(logs))
    assert "No stage has ended yet" in run_report(run)
