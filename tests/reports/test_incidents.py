"""Incident files: the worst rows come first, those that stand out are marked, and a file reads back as it was."""

from __future__ import annotations

import json
import math
import random

import pytest
from huggingface_hub.utils import filter_repo_objects

from hf_stages.reports.incidents import (
    Incident,
    IncidentRow,
    incident_file,
    incident_steps,
    judge_rows,
    read_incident,
    read_incidents,
    write_incident,
)


def rows(losses, **more):
    return [IncidentRow(0, 0, i, loss, **more) for i, loss in enumerate(losses)]


def marked(losses, typical=None):
    found, _ = judge_rows(rows(losses), typical)
    return {row.row for row in found if row.stands_out}


def healthy(count, seed):
    draw = random.Random(seed)
    return [draw.gauss(2.0, 0.2) for _ in range(count)]


def incident(found, **more):
    given = {"step": 12, "stage": "one", "by": "OnSpike", "reason": "a spike", "t": 0.5}
    return Incident(**{**given, "before": True, "usual": 2.0, "rows": tuple(found), **more})


def test_rows_that_are_not_finite_come_first_and_stand_out():
    found, usual = judge_rows(rows([2.0, math.nan, 2.2, math.inf, 2.1]), None)
    assert {row.row for row in found[:2]} == {1, 3}
    assert [row.stands_out for row in found] == [True, True, False, False, False]
    assert usual == 2.1


def test_few_rows_of_healthy_batches_stand_out():
    false = sum(len(marked(healthy(16, seed), 2.0)) for seed in range(200))
    assert false / (200 * 16) < 0.01


@pytest.mark.parametrize("bad", [1, 4, 8, 12, 15])
def test_bad_rows_stand_out_however_many_they_are_where_a_typical_loss_is_known(bad):
    for seed in range(50):
        draw = random.Random(seed)
        losses = [draw.gauss(6.0, 0.5) for _ in range(bad)] + healthy(16 - bad, seed)
        assert marked(losses, 2.05) >= set(range(bad))


def test_a_batch_of_bad_rows_alone_stands_out_against_the_typical_loss():
    assert marked([6.0, 6.1, 6.2], 2.0) == {0, 1, 2}
    assert marked([6.0, 6.1, 6.2]) == set()


def test_a_row_without_a_target_is_last_and_does_not_stand_out():
    found, _ = judge_rows(rows([None, 2.0, 2.1]), None)
    assert (found[-1].row, found[-1].stands_out) == (0, False)


def test_an_incident_reads_back_as_it_was_written(tmp_path):
    made = [
        IncidentRow(1, 0, 3, math.nan, 8, ({"source": "web", "index": 17, "position": 40},), "a tëxt\nof two lines"),
        IncidentRow(0, 1, 0, 2.5, 8, ({"position": 3}, {"position": 4})),
        IncidentRow(0, 1, 1, None),
    ]
    found, _ = judge_rows(made, None)
    path = write_incident(tmp_path, incident(found, rebuild={"loss": None}))
    assert path == incident_file(tmp_path, 12) == tmp_path / "_private" / "incidents" / "step-12.jsonl"
    back = read_incident(path)
    assert math.isnan(back.rows[0].loss)
    assert back.rows[1:] == tuple(found[1:])
    assert (back.step, back.before, back.rebuild) == (12, True, {"loss": None})
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_incidents_of_a_run_are_listed_by_step(tmp_path):
    assert incident_steps(tmp_path) == []
    for step in (120, 7):
        write_incident(tmp_path, incident([], step=step))
    assert [one.step for one in read_incidents(tmp_path)] == [7, 120]


def test_a_damaged_file_is_named(tmp_path):
    path = write_incident(tmp_path, incident(rows([2.0])))
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(ValueError, match=r"step-12\.jsonl: not readable as an incident"):
        read_incident(path)


def test_a_summary_names_the_worst_row():
    found, usual = judge_rows(
        [IncidentRow(0, 0, 0, 9.0, examples=({"source": "web", "index": 3},)), *rows([2.0, 2.1])], None
    )
    text = incident(found, usual=usual).summary()
    assert text == "1 of 3 rows stand out; the worst is row 3 of web, loss 9 against 2.1 as usual"


@pytest.mark.parametrize(("count", "told"), [(1, "its one row has only"), (3, "all 3 rows have only")])
def test_a_summary_of_rows_without_labels_says_what_to_do(count, told):
    text = incident(rows([None] * count)).summary()
    assert text.startswith("no row of the update has a target: ")
    assert told in text
    assert "drop such rows, or let a longer max_length keep their labels" in text


def test_a_summary_of_rows_that_could_not_be_measured_says_why():
    text = incident(rows([None]), problem="ValueError: two rows are needed").summary()
    assert text == "no row of the update could be measured: ValueError: two rows are needed"


def test_incidents_are_not_pushed_to_the_hub(tmp_path):
    """Trainer pushes a run's folder without what begins with an underscore: rows of the data stay at home."""
    path = write_incident(tmp_path, incident(rows([2.0])))
    (tmp_path / "README.md").touch()
    files = [str(file.relative_to(tmp_path)) for file in (path, tmp_path / "README.md")]
    assert list(filter_repo_objects(files, ignore_patterns=["_*", "checkpoint-*"])) == ["README.md"]
