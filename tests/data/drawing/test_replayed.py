"""Events change what comes and never what came; the own data's curves follow the stage all the same."""

from __future__ import annotations

import numpy as np
import pytest

from hf_stages.core.curves import Linear, Step
from hf_stages.data import ByLength, Mixture, Ordered, Replay
from hf_stages.data.drawing.blend import make_blend
from hf_stages.data.drawing.replayed import Replayed

SOURCES = {name: [{"input_ids": [1] * (3 + i % 4)} for i in range(n)] for name, n in (("a", 17), ("b", 40), ("old", 9))}
SOURCES |= {"rows": [{"input_ids": [1]}] * 5, "older": [{"input_ids": [1]}] * 30}
OWN = {
    "plain": "a",
    "ramp": Mixture({"a": Linear(1, 0.3), "b": Linear(0, 0.7)}),
    "ordered": Ordered(["a", "b"]),
    "nested": Replay("rows", 0.2, into=Mixture({"a": 1, "b": Linear(0, 1)})),
    "lengths": ByLength("a", tokens=12),
}
EARLIER = {"one": "old", "two": Mixture({"old": Linear(1, 0), "older": 1.0})}


def bound(own, earlier="old", *, draws=600, seed=3):
    found = make_blend(Replayed(own, earlier, "own"), lambda name, where: SOURCES[name], "stage 'two'")
    return found.bind(draws, seed)


def random_events(draw, draws, count):
    places = sorted(draw.choice(draws, count, replace=False).tolist())
    return tuple((place, round(float(draw.uniform(0.05, 0.6)), 3)) for place in places)


CASES = [(own, earlier, draws) for own in OWN for earlier in EARLIER for draws in (600, 20_000)]


# With 600 draws a block of the clock is one, with 20,000 it is two or three.
@pytest.mark.parametrize(("own", "earlier", "draws"), [*CASES, ("capped", "one", 600)])
def test_what_was_drawn_before_an_event_stays(own, earlier, draws):
    part = Mixture({"a": 1, "b": 0.2}, max_repeats=draws / 50) if own == "capped" else OWN[own]
    made = bound(part, EARLIER[earlier], draws=draws)
    draw = np.random.default_rng(len(own) + draws)
    events = random_events(draw, draws, 3)
    before, counts = made.at(range(draws)), [made.draws_before(event[0]) for event in events]
    for number, (place, _) in enumerate(events):
        made.replay(events[: number + 1])
        after = made.at(range(draws))
        for was, now in zip(before, after, strict=True):
            assert np.array_equal(was[:place], now[:place])
        assert made.draws_before(place) == (counts[0] if not number else counts[number])
        before = after
        counts = [made.draws_before(event[0]) for event in events]


@pytest.mark.parametrize("draws", [600, 20_000])
def test_shares_are_the_events(draws):
    """A source is at most half a draw from its share, counted from the block at which the event takes effect."""
    made = bound("a", draws=draws)
    events = ((draws // 10, 0.1), (draws // 3, 0.25), (2 * draws // 3, 0.5))
    made.replay(events)
    leaves, rows = made.at(range(draws))
    block, owed, had = max(draws // 8192, 1) + 1, 0.0, 0
    share = 0.0
    for k in range(draws):
        share = next((value for place, value in reversed(events) if k >= place), 0.0)
        owed, had = owed + share, had + int(leaves[k] == 1)
        assert abs(had - owed) <= 0.51 + (0 if draws == 600 else block * 0.5)
    assert made.declared_shares(0, draws)[1] == pytest.approx(owed / draws, abs=block / draws)
    assert made.declared_shares(draws // 3 + block, draws // 2) == pytest.approx([0.75, 0.25])
    for leaf, size in ((0, 17), (1, 9)):  # each source is read on where it stands, pass after pass
        own = rows[leaves == leaf]
        for start in range(0, len(own) - size, size):
            assert sorted(own[start : start + size]) == list(range(size))


def test_without_an_event_it_is_the_own_data():
    alone = make_blend(OWN["ramp"], lambda name, where: SOURCES[name], "here").bind(600, 3)
    for mine, theirs in zip(bound(OWN["ramp"]).at(range(600)), alone.at(range(600)), strict=True):
        assert np.array_equal(mine, theirs)
    assert bound(OWN["ramp"]).n == alone.n


@pytest.mark.parametrize("events", [(), ((50, 0.5),), ((50, 0.2), (400, 0.4))])
def test_own_curves_follow_the_stage(events):
    """``b`` takes over at half of the stage, however much is replayed."""
    made = bound(Mixture({"a": Step(((0, 1), (0.5, 0))), "b": Step(((0, 0), (0.5, 1)))}))
    made.replay(events)
    leaves, _ = made.at(range(600))
    a, b = made.names.index("a"), made.names.index("b")
    assert abs(int(np.flatnonzero(leaves == a).max()) - 300) <= 4
    assert abs(int(np.flatnonzero(leaves == b).min()) - 300) <= 4


def test_an_event_behind_the_planned_end():
    """A stage in tokens may take more updates than planned."""
    made = bound("a", draws=600)
    before = made.at(range(1200))
    made.replay(((900, 0.5),))
    after = made.at(range(1200))
    assert np.array_equal(before[0][:900], after[0][:900])
    assert 120 <= int((after[0][900:] == 1).sum()) <= 150


def test_drawn_one_by_one_an_event_holds_from_its_position_on():
    own = Mixture({"a": Linear(1, 0.5), "b": Linear(0, 0.5)}, weigh="tokens")
    made = bound(own)
    before = list(made.draw_range(made.walk(), 0, 600))
    made.replay(((200, 0.3),))
    after = list(made.draw_range(made.walk(), 0, 600))
    assert before[:200] == after[:200]
    old = made.names.index("old")
    tokens = [(leaf, len(SOURCES[made.names[leaf]][row]["input_ids"])) for leaf, row in after[200:]]
    assert sum(n for leaf, n in tokens if leaf == old) / sum(n for _, n in tokens) == pytest.approx(0.3, abs=0.01)
