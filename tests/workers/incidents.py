"""Scenarios for two ranks: the rows of bad updates are named on whichever rank they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hf_stages import Stage
from hf_stages.data import Mixture
from hf_stages.gates import OnSpike
from hf_stages.reports.incidents import read_incidents
from hf_stages.training.incidents.replay import replay_incident
from tests.support.poisoned import LEARNS, NanOn, check_crawl_is_named, late_crawl, poisoned_data, with_odd_row
from tests.workers.ranks import same_on_ranks, scenario, staged

MIXED = Mixture({"web": 0.6, "books": 0.4})


def run(out: Path, steps: int, data: Any, part: Any = MIXED, **stage: Any) -> Any:
    stages = [Stage("one", f"{steps} steps", train_dataset=part, **stage)]
    trainer = staged(out, stages, 4, 2, train_dataset=data, **LEARNS)
    trainer.train()
    return trainer


@scenario
def poisoned_rows(out: Path) -> None:
    """Over several epochs, in micro-batches of four on each rank: garbage joins a run, is skipped, and is named."""
    data, part = late_crawl()
    trainer = run(out, 70, data, part, gates=[OnSpike(skip=50, window=32)])
    same_on_ranks(trainer.model, "after skipped updates")
    dist.barrier()
    incidents = read_incidents(out)
    assert len(incidents) >= 5
    assert {row.rank for incident in incidents for row in incident.rows} == {0, 1}
    assert all(len(incident.rows) == 16 for incident in incidents)
    assert all(incident.by == "OnSpike" for incident in incidents)
    check_crawl_is_named(incidents)
    replay = replay_incident(out, incidents[0])
    assert replay.loss_without < replay.loss


@scenario
def a_row_that_is_nan_on_one_rank(out: Path) -> None:
    """Both ranks stop together, and the incident names the row."""
    data = with_odd_row(poisoned_data(bad=0.0)[0], "books", 11)
    try:
        run(out / "run", 30, data, loss=NanOn())
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError("the run went on")
    problems: list[Any] = [None, None]
    dist.all_gather_object(problems, message)
    assert sum("on another rank" in problem for problem in problems) == 1
    dist.barrier()
    (incident,) = read_incidents(out / "run")
    assert re.search(r"loss NanOn: its value is nan", incident.reason)
    (bad,) = incident.standing_out
    assert bad == incident.rows[0]
    assert (bad.examples[0]["source"], bad.examples[0]["index"]) == ("books", 11)
    replay = replay_incident(out / "run", incident, trust_remote_code=True)
    assert replay.loss != replay.loss
    assert replay.rows[0].grad_norm_without == replay.grad_norm_without
    assert 0 < replay.grad_norm_without < 100
