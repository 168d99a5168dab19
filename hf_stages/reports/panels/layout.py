"""Prepares the three panels for drawing: which lines there are, on which axes, and how they look.

Pages (SVG) and pictures (matplotlib) draw the same ``Panels``, so they show the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_stages.reports.pages.svg import COLOURS
from hf_stages.reports.panels.log_axis import LogAxis, axis_over
from hf_stages.reports.panels.run_curves import Mark, Points, RunCurves

LEAST_CORRELATION = 1e-3
"""Correlations at or below it stand on the floor: sampling noise lies around zero, and has no logarithm there."""
DASHES = ((), (11, 3), (7, 3), (4, 3), (1.5, 2.5), (9, 3, 2, 3), (9, 3, 2, 3, 2, 3), (2, 7))
"""Line styles of the recurrences, from the deepest up: the deeper, the fuller."""
_BINS = 300
_GLYPHS = {"alert": "up", "incident": "dot", "skip": "bar", "cut_lr": "down", "rollback": "left", "replay": "left"}


@dataclass(frozen=True)
class Style:
    """How a run is drawn."""

    name: str
    letter: str
    """Stands at the end of its lines: they are told apart without colours too. After Z comes AA."""
    colour: str


@dataclass(frozen=True)
class Line:
    """A run's values in one panel."""

    style: Style
    depth: int | None
    segments: tuple[Points, ...]
    """What is drawn as a line; it breaks where values are not finite or stand on the floor."""
    floored: tuple[float, ...]
    """Steps whose values stand on the floor."""
    lost: tuple[float, ...]
    """Steps whose values are NaN or infinite."""

    end: float
    """The last finite value, beside which the run's letter stands; NaN where there is none."""


@dataclass(frozen=True)
class Panel:
    """One of the three."""

    title: str
    steps: LogAxis
    """The horizontal axis."""
    axis: LogAxis
    """The vertical one."""
    lines: tuple[Line, ...]
    note: str
    """Which runs have nothing to show here; why, where it is all of them."""


@dataclass(frozen=True)
class Panels:
    """All that a picture of runs holds."""

    runs: tuple[Style, ...]
    panels: tuple[Panel, Panel, Panel]
    depths: tuple[int, ...]
    """The recurrences, the deepest first; their line styles are ``DASHES`` in this order."""
    marks: tuple[tuple[Style, tuple[Mark, ...]], ...]
    """Decisions of the runs that have some."""
    stages: tuple[tuple[Style, tuple[Mark, ...]], ...]
    """Where the stages begin that are not the first."""

    @property
    def floored(self) -> bool:
        return any(line.floored for panel in self.panels for line in panel.lines)

    @property
    def lost(self) -> bool:
        return any(line.lost for panel in self.panels for line in panel.lines)

    def dashes(self, depth: int | None) -> Sequence[float]:
        return () if depth is None else DASHES[self.depths.index(depth) % len(DASHES)]


def lay_out(runs: Sequence[RunCurves], eval_set: str | None = None) -> Panels:
    """Prepare the panels of one or more runs.

    Args:
        runs: What they logged.
        eval_set: The evaluation set whose perplexity is shown; one that all runs have if left out.
    """
    chosen = choose_set(runs) if eval_set is None else eval_set
    styles = [Style(run.name, letters_of(i), COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs)]
    losses = [[(None, run.loss)] for run in runs]
    correlations = [[(None, run.correlation)] for run in runs]
    perplexities = [list(((run.perplexity or {}).get(chosen or "") or {}).items()) for run in runs]
    steps = _steps_over([*losses, *correlations])
    of_set = f" on {chosen}" if chosen else ""
    panels = (
        _panel("Training loss", styles, losses, steps, "no run has a training loss"),
        _panel(
            "Hidden-state correlation",
            styles,
            correlations,
            steps,
            "no run logs it: add the monitor TokenCorrelation()",
            floor=LEAST_CORRELATION,
            top=1.0,
        ),
        _panel(
            f"Validation perplexity{of_set}", styles, perplexities, _steps_over(perplexities), "no run was evaluated"
        ),
    )
    depths = sorted({d for per_run in perplexities for d, _ in per_run if d is not None}, reverse=True)
    marks = [(style, run.marks) for style, run in zip(styles, runs, strict=True) if run.marks]
    stages = [
        (style, tuple(mark for mark in run.stages if mark.step > 0)) for style, run in zip(styles, runs, strict=True)
    ]
    return Panels(tuple(styles), panels, tuple(depths), tuple(marks), tuple((s, found) for s, found in stages if found))


def choose_set(runs: Sequence[RunCurves]) -> str | None:
    """Return the evaluation set to show: of those that most runs have, one with recurrences, then the first by name.

    >>> one = RunCurves("a", perplexity={"": {None: ((1, 9.0),)}, "prose": {1: ((1, 9.0),), 4: ((1, 8.0),)}})
    >>> choose_set([one]), choose_set([one, RunCurves("b", perplexity={"": {None: ((1, 7.0),)}})])
    ('prose', '')
    """
    names = sorted({name for run in runs for name in run.sets})

    def rank(name: str) -> tuple[int, bool]:
        having = [run.perplexity[name] for run in runs if run.perplexity and name in run.perplexity]
        return len(having), any(depth is not None for depths in having for depth in depths)

    return max(names, key=rank, default=None)


def letters_of(number: int) -> str:
    """Return what a run is called at its lines' ends.

    >>> [letters_of(number) for number in (0, 25, 26, 27, 701, 702)]
    ['A', 'Z', 'AA', 'AB', 'ZZ', 'AAA']
    """
    rest, last = divmod(number, 26)
    return (letters_of(rest - 1) if rest else "") + chr(ord("A") + last)


def end_labels(panels: Panels, panel: Panel, room: int) -> list[tuple[float, str, str]]:
    """Return (value, words, colour) of the labels at lines' ends: the run's letter, and its outermost recurrences.

    Where there is no room for so many, each run has one label, and of too many runs only some do, evenly chosen by
    their values: the lowest and the highest are among them.
    """
    found, alone = [], []
    for style in panels.runs:
        lines = [line for line in panel.lines if line.style == style and math.isfinite(line.end)]
        for line in dict.fromkeys(lines[:1] + lines[-1:]):
            depth = "" if line.depth is None else f" {line.depth}"
            found.append((line.end, style.letter + depth, style.colour))
        alone += [(line.end, style.letter, style.colour) for line in lines[-1:]]
    if len(found) <= room:
        return found
    alone.sort(key=lambda label: label[0])
    return alone if len(alone) <= room else [alone[i * (len(alone) - 1) // (room - 1)] for i in range(room)]


def glyph_of(kind: str) -> str:
    """Return the shape of a decision's mark: up, down, left, bar, dot or square."""
    return _GLYPHS.get(kind, "square")


def _steps_over(series: Iterable[Iterable[tuple[int | None, Points]]]) -> LogAxis:
    """Return the axis of steps; evaluations before the first update stand at its beginning."""
    return axis_over([x for lines in series for _, points in lines for x, _ in points], floor_label="0")


def _panel(
    title: str,
    styles: Sequence[Style],
    per_run: Sequence[Sequence[tuple[int | None, Points]]],
    steps: LogAxis,
    nobody: str,
    *,
    floor: float = 0.0,
    top: float | None = None,
) -> Panel:
    found = [
        (style, depth, points)
        for style, depths in zip(styles, per_run, strict=True)
        for depth, points in depths
        if points
    ]
    axis = axis_over([y for _, _, points in found for _, y in points], floor=floor, top=top)
    lines = tuple(_line(style, depth, points, axis, steps) for style, depth, points in found)
    held = {line.style for line in lines}
    missing = [style.name for style in styles if style not in held]
    note = nobody if not held else f"not logged: {', '.join(missing)}" if missing else ""
    return Panel(title, steps, axis, lines, note)


def _line(style: Style, depth: int | None, points: Points, axis: LogAxis, steps: LogAxis) -> Line:
    segments: list[list[tuple[float, float]]] = [[]]
    known = {x for x, y in points if math.isfinite(y)}
    for x, y in points:
        if math.isfinite(y) and y > axis.floor:
            segments[-1].append((x, y))
        elif segments[-1] and (math.isfinite(y) or x not in known):
            segments.append([])
    floored = [x for x, y in points if math.isfinite(y) and y <= axis.floor]
    lost = [x for x, y in points if not math.isfinite(y)]
    end = next((y for _, y in reversed(points) if math.isfinite(y)), math.nan)
    thinned = tuple(thin(segment, steps) for segment in segments if segment)
    return Line(style, depth, thinned, one_per_bin(floored, steps), one_per_bin(lost, steps), end)


def thin(points: Iterable[tuple[float, float]], steps: LogAxis, bins: int = _BINS) -> Points:
    """Keep of each narrow part of the axis the first, the least, the greatest and the last point: no spike is lost."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        groups.setdefault(int(steps.at(point[0]) * bins), []).append(point)
    kept = []
    for group in groups.values():
        lowest, highest = (pick(group, key=lambda point: point[1]) for pick in (min, max))
        kept += sorted({group[0], lowest, highest, group[-1]})
    return tuple(kept)


def one_per_bin(values: Iterable[float], steps: LogAxis, bins: int = _BINS) -> tuple[float, ...]:
    """Keep one step of each narrow part of the axis: marks upon each other show no more."""
    return tuple({int(steps.at(value) * bins): value for value in values}.values())


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until none is nearer to the next than ``gap``, in their order and between low and high.

    >>> spread([5, 5, 40], 10, 0, 60)
    [5, 15, 40]
    >>> spread([58, 59], 10, 0, 60)
    [50, 60]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    last = low - gap
    for i in order:
        placed[i] = last = max(wanted[i], last + gap)
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def gather(marks: Iterable[Mark], steps: LogAxis, bins: int = _BINS // 3) -> list[Mark]:
    """Make one mark of several of a kind that would stand upon each other; its words are those of the first three.

    Marks beyond the axis are left out.
    """
    groups: dict[tuple[str, int], list[Mark]] = {}
    for mark in filter(lambda mark: steps.holds(mark.step), marks):
        groups.setdefault((mark.kind, int(steps.at(mark.step) * bins)), []).append(mark)
    return [
        Mark(group[0].step, kind, "; ".join(mark.words for mark in group[:3]) + ("; ..." if len(group) > 3 else ""))
        for (kind, _), group in groups.items()
    ]


def words_of(kind: str) -> str:
    """Return what the legend calls a kind of decision."""
    words = {"skip": "update skipped", "cut_lr": "rate cut", "stop": "stopped", "incident": "rows written down"}
    return words.get(kind, kind)


def check_comparable(runs: Sequence[RunCurves], eval_set: str | None = None) -> None:
    """Refuse runs of which no two share a panel, and an evaluation set that no run has."""
    sets = sorted({name for run in runs for name in run.sets})
    if eval_set is not None and eval_set not in sets:
        known = ", ".join(map(repr, sets)) or "none"
        raise ValueError(f"no run was evaluated on {eval_set!r}; the evaluation sets are {known}")
    chosen = choose_set(runs) if eval_set is None else eval_set
    shown = [
        [run.name for run in runs if run.loss],
        [run.name for run in runs if run.correlation],
        [run.name for run in runs if chosen in run.sets],
    ]
    if len(runs) > 1 and max(map(len, shown)) < 2:
        what = ("a loss", "token_correlation", f"an evaluation{f' on {chosen}' if chosen else ''}")
        held = [f"{name} has {has}" for has, names in zip(what, shown, strict=True) for name in names]
        raise ValueError(
            f"these runs have no metric in common that the panels show: {'; '.join(held)}. Each compared run needs a "
            "logged loss, the monitor TokenCorrelation(), or an evaluation set of the same name"
        )
