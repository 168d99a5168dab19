"""The example of recurrent depth: detectors name the bad runs, and one of them is brought back."""

from __future__ import annotations

import pytest

import recurrent_depth
from hf_stages.reports.panels.read_curves import read_curves
from hf_stages.reports.run_folder import read_run

pytestmark = pytest.mark.usefixtures("quick_gc", "one_thread")


def test_a_collapse_is_named_and_compared(tmp_path, capsys):
    found = recurrent_depth.main(tmp_path, 60, ["collapsed"])
    assert set(found["collapsed"]) == {"TokenCollapse", "DeadRecurrence"}
    assert read_curves(tmp_path / "collapsed").correlation[-1][1] > 0.95
    assert "the hidden states of all tokens are becoming alike" in capsys.readouterr().out
    assert "Hidden-state correlation" in (tmp_path / "panels.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_run_is_what_the_example_says_of_it(tmp_path):
    found = recurrent_depth.main(tmp_path, 300)
    assert found["good"] == []
    assert set(found["collapsed"]) == {"TokenCollapse", "DeadRecurrence"}
    assert set(found["prenorm"]) == {"Overthinking"}
    curves = {name: read_curves(tmp_path / name) for name in found}
    ends = {name: {d: line[-1][1] for d, line in one.perplexity[""].items()} for name, one in curves.items()}
    assert ends["good"][64] < 0.97 * ends["good"][1]
    assert ends["prenorm"][64] > 1.1 * ends["prenorm"][8]
    assert curves["collapsed"].correlation[-1][1] > 0.99
    assert [e["kind"] for e in read_run(tmp_path / "rescued").ledger].count("rollback") >= 1
    assert ends["rescued"][64] < ends["collapsed"][64]
