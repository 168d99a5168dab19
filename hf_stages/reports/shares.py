"""Reads from folders and logs how much stages with several sources drew of each, over their progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_stages.reports.run_folder import ReadRun, ReadStage

_KEY = "share_"


@dataclass(frozen=True)
class SharePoint:
    """The shares in a part of the stage; ``t`` is the progress in its middle."""

    t: float
    realized: Mapping[str, float]
    declared: Mapping[str, float] | None = None


@dataclass(frozen=True)
class StageShares:
    """The shares of one stage.

    ``totals`` is empty where it is not finished. Then the shares come from the log, which holds no declared ones.
    """

    index: int
    name: str
    sources: tuple[str, ...]
    points: tuple[SharePoint, ...]
    totals: Mapping[str, Mapping[str, Any]]
    unit: str = ""
    """``tokens`` or ``examples``."""

    @property
    def finished(self) -> bool:
        return bool(self.totals)


def read_shares(run: ReadRun) -> list[StageShares]:
    """Return the shares of every stage that draws from several sources, as far as it went."""
    found, step = [], 0
    for stage in run.stages:
        one = _from_stage_file(stage) if stage.summary is not None else _from_log(stage, run, step)
        if one is not None and len(one.sources) > 1 and one.points:
            found.append(one)
        step = (stage.summary or {}).get("global_step", step)
    return found


def _from_stage_file(stage: ReadStage) -> StageShares | None:
    data = (stage.summary or {}).get("data")
    if not data:
        return None
    points = tuple(SharePoint(p["t"], p["share"], p["declared"]) for p in data.get("over_time", ()))
    totals = data["sources"]
    return StageShares(stage.index, stage.name, tuple(totals), points, totals, data.get("shares_of", ""))


def _from_log(stage: ReadStage, run: ReadRun, start: int) -> StageShares | None:
    """Read an unfinished stage from the log: each entry holds the shares since the entry before it."""
    if stage.status == "damaged" or not stage.planned:
        return None
    points, before = [], start
    for log in run.logs:
        shares = {key.removeprefix(_KEY): value for key, value in log.items() if key.startswith(_KEY)}
        if log.get("stage") != stage.index or not shares:
            continue
        points.append(SharePoint(((before + log["step"]) / 2 - start) / stage.planned, shares))
        before = log["step"]
    names = tuple(points[0].realized) if points else ()
    return StageShares(stage.index, stage.name, names, tuple(points), {})
