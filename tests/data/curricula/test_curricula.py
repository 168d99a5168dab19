"""Curricula as trees: which rows come in which order, and what cannot be drawn."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_stages.core.curves import Linear, Step
from hf_stages.core.randomness import preserve_random_state
from hf_stages.data import ByDifficulty, ByLength, Mixture, Ordered, Replay
from hf_stages.data.drawing.blend import SizedBlend, make_blend
from hf_stages.data.drawing.drawn_rows import DrawnStream
from hf_stages.data.drawing.scores import sort_rows

SIZES = {"a": 30, "b": 50, "tiny": 3}


def rows(n, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {"input_ids": [1] * int(generator.integers(2, 20)), "hard": float(generator.random()), "id": i}
        for i in range(n)
    ]


SOURCES = {name: Dataset.from_list(rows(n, seed)) for seed, (name, n) in enumerate(SIZES.items())}


def look_up(name, where):
    if name not in SOURCES:
        raise ValueError(f"{where}: no source is called {name!r}")
    return SOURCES[name]


def made(part, draws=100, **options):
    return make_blend(part, look_up, "stage 's': train_dataset").bind(draws, 7, **options)


def drawn(part, draws=100, **options):
    """(source, row) at every position."""
    found = made(part, draws, **options)
    leaves, places = found.at(np.arange(draws))
    return [(found.names[leaf], int(row)) for leaf, row in zip(leaves, places, strict=True)]


NESTED = Mixture(
    {"a": Linear(1, 0.3), "rest": Linear(0, 0.7)},
    sources={"rest": Replay("tiny", 0.2, into=ByDifficulty("b", by="hard", window=8))},
)


@pytest.mark.parametrize(
    "part",
    [
        Mixture({"a": Linear(1, 0.3), "b": Linear(0, 0.7)}),
        Mixture(["a", "b", "tiny"], temperature=3.0),
        Ordered(["a", "tiny"]),
        Ordered(["tiny", "b"], shuffle=True),
        ByDifficulty("b", by="hard", window=7, again=False),
        ByLength("a"),
        NESTED,
        Ordered([Mixture({"a": 1, "tiny": 1}), "b"]),
    ],
    ids=lambda part: type(part).__name__,
)
def test_no_row_twice_before_its_source_is_exhausted(part):
    draws = 400
    found = drawn(part, draws)
    for name in dict(found):
        own = [row for source, row in found if source == name]
        for start in range(0, len(own), SIZES[name]):
            one_pass = own[start : start + SIZES[name]]
            assert len(set(one_pass)) == len(one_pass)
            assert len(one_pass) < SIZES[name] or set(one_pass) == set(range(SIZES[name]))
    assert made(part, draws).draws_before(draws) == [
        sum(s == name for s, _ in found) for name in made(part, draws).names
    ]


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([NESTED, Ordered([Mixture({"a": 1, "tiny": 1}), "b"])]), st.integers(0, 90_000), st.integers(1, 40)
)
def test_any_position_is_reached_alone(part, start, width):
    found = made(part, 90_000)
    together = found.at(np.arange(start, start + width))
    alone = [found.at([k]) for k in range(start, start + width)]
    for i in (0, 1):
        assert together[i].tolist() == [int(one[i][0]) for one in alone]


def test_declared_shares_are_the_curves():
    found = made(Mixture({"a": Linear(1, 0.3), "b": Linear(0, 0.7)}), 1000)
    assert found.declared_shares(0, 1000) == pytest.approx([0.65, 0.35], abs=1e-3)
    assert found.declared_shares(900, 1000) == pytest.approx([0.335, 0.665], abs=1e-3)


def test_by_size_and_temperature():
    flat = made(Mixture(["a", "tiny"], temperature=1e6))
    assert flat.declared_shares(0, 100) == pytest.approx([0.5, 0.5], abs=1e-3)
    by_size = made(Mixture(["a", "tiny"]))
    assert by_size.declared_shares(0, 100) == pytest.approx([30 / 33, 3 / 33], abs=1e-3)
    assert made(Mixture(["a", "b"])).n == 80


def test_order_of_ordered_and_by_difficulty():
    assert drawn(Ordered(["tiny", "a"]), 36) == [("tiny", i) for i in range(3)] + [("a", i) for i in range(30)] + [
        ("tiny", i) for i in range(3)
    ]
    scores = SOURCES["b"]["hard"]
    own = [scores[row] for _, row in drawn(ByDifficulty("b", by="hard"), 50)]
    assert own == sorted(own)
    hardest = [scores[row] for _, row in drawn(ByDifficulty("b", by="hard", descending=True), 50)]
    assert hardest == sorted(own, reverse=True)
    near = [row for _, row in drawn(ByDifficulty("b", by="hard", window=10), 50)]
    exact = [row for _, row in drawn(ByDifficulty("b", by="hard"), 50)]
    assert near != exact
    assert all(set(near[i : i + 10]) == set(exact[i : i + 10]) for i in range(0, 50, 10))


def test_a_scorer_is_asked_once_and_its_order_kept(tmp_path):
    asked = []

    def scorer(rows):
        asked.append(len(rows))
        return [len(row["input_ids"]) for row in rows]

    part = ByDifficulty("b", by=scorer)
    first = drawn(part, 50, folder=tmp_path)
    assert drawn(part, 50, folder=tmp_path) == first
    assert sum(asked) == 50
    (file,) = tmp_path.glob("*.npy")
    assert np.load(file, mmap_mode="r").dtype == np.uint32
    assert [row for _, row in first] == [row for _, row in drawn(ByDifficulty("b", by="length"), 50)]


def test_length_curriculum_keeps_the_tokens_of_a_place():
    found = made(ByLength("b", tokens=40))
    (leaf,) = found.leaves
    groups = [leaf.dataset[int(g)] for g in found.at(np.arange(leaf.n))[1]]
    lengths = [[len(row["input_ids"]) for row in group] for group in groups]
    assert sorted(row["id"] for group in groups for row in group) == list(range(50))
    assert all(len(group) * max(group) <= 40 for group in lengths)
    assert [max(group) for group in lengths] == sorted(max(group) for group in lengths)
    assert len(lengths[0]) > 2 * len(lengths[-1])
    assert np.mean([len(group) * max(group) for group in lengths[:-1]]) > 30


def test_caps_give_way_to_the_others():
    found = drawn(Mixture({"a": 0.5, "tiny": 0.5}, max_repeats=2), 60)
    counts = Counter(name for name, _ in found)
    assert counts["tiny"] == 6
    assert all(name == "a" for name, _ in found[14:])
    counts = Counter(name for name, _ in drawn(Mixture({"a": 1, "b": 1, "tiny": 1}, max_repeats=1), 80))
    assert (counts["tiny"], counts["a"]) <= (3, 30)
    assert counts["tiny"] >= 2


def test_token_weights_follow_the_curve():
    long = Dataset.from_list([{"input_ids": [1] * 30}] * 40)
    part = Mixture({"a": Linear(1, 0.5), "long": Linear(0, 0.5)}, {"long": long}, weigh="tokens")
    found = made(part, 600)
    walk, tokens, target = found.walk(), np.zeros(2), np.zeros(2)
    for k, (leaf, row) in enumerate(found.draw_range(walk, 0, 600)):
        size = len(found.leaves[leaf].dataset[row]["input_ids"])
        tokens[leaf] += size
        t = (k + 0.5) / 600
        target += size * np.array([1 - t / 2, t / 2])
        assert np.abs(tokens - target).max() <= 30  # never off by more than the longest row
    again = found.walk()
    rows_ = list(found.draw_range(again, 0, 250))
    resumed = found.walk()
    resumed.load_state_dict(again.state_dict())
    assert list(found.draw_range(resumed, 250, 600)) == list(made(part, 600).draw_range(found.walk(), 0, 600))[250:]
    assert len(rows_) == 250


def test_what_is_said_inside_goes_before_what_is_said_around_it():
    inner = Mixture({"a": 1, "tiny": 1}, on_dry="stop", max_repeats=20)
    part = Mixture({"both": 1, "b": 1}, {"both": inner}, on_dry="stop")
    made(part, 100).check_dry()  # 25 of three rows, once more than eight times
    with pytest.raises(ValueError, match="'tiny' runs dry: the stage draws 25 of it, and 24 are allowed"):
        made(Mixture({"both": 1, "b": 1}, {"both": replace(inner, max_repeats=8)}, on_dry="stop"), 100).check_dry()


def test_a_blend_without_streams_has_rows_and_a_length():
    found = made(Ordered(["a", "b"]))
    assert isinstance(found, SizedBlend)
    assert len(found) == 80
    assert found[79] == SOURCES["b"][49]


BAD = {
    "unknown": (Mixture({"a": 1, "nope": 1}), "no source is called 'nope'"),
    "negative": (Mixture({"a": 1, "b": Linear(1, -1)}), r"'b' weighs -\d.* at t=0.5"),
    "all-zero": (Mixture({"a": Step(((0, 1), (0.5, 0))), "b": 0}), "all are 0 at t=0.5"),
    "dry": (
        Mixture({"a": 0.5, "tiny": 0.5}, on_dry="stop"),
        "'a' runs dry: the stage draws 50 of it, and 30 are allowed",
    ),
    "dry-inside": (
        Mixture({"both": 0.9, "b": 0.1}, {"both": Ordered(["tiny", "a"])}, on_dry="stop"),
        "'tiny' runs dry: the stage draws 9 of it, and 3 are allowed",
    ),
    "capped-by-tokens-inside": (
        Mixture({"both": 1, "tiny": 1}, {"both": Mixture({"a": 1, "b": 1}, weigh="tokens")}, max_repeats=9),
        "max_repeats: a mixture here goes by tokens",
    ),
    "capped-inside-of-tokens": (
        Mixture({"both": 1, "tiny": 1}, {"both": Mixture({"a": 1, "b": 1}, max_repeats=9)}, weigh="tokens"),
        "max_repeats: a mixture here goes by tokens",
    ),
    "several-in-a-stream": (
        Mixture({"a": 1, "s": 1}, {"a": ByLength("a", tokens=40), "s": SOURCES["b"].to_iterable_dataset()}),
        "'a' gives several rows at once",
    ),
    "capped-out": (Mixture({"tiny": 1, "a": 1}, max_repeats=1), "every source that weighs something has been read"),
    "twice": (Mixture({"a": 1, "more": 1}, {"more": Ordered(["a", "b"])}), "'a' is drawn from in two places"),
    "empty": (Mixture({"a": 1, "none": 1}, {"none": []}), "'none' is an empty dataset"),
    "column": (ByDifficulty("a", by="level"), "'a' has no column 'level'; there are input_ids, hard, id"),
    "too-long": (ByLength("a", tokens=5), "does not fit 5"),
    "nested": (ByDifficulty(Mixture({"a": 1, "b": 1})), "orders the rows of one source"),
    "into": (Replay("a", 0.1), "into: expected what the stage is about"),
    "untokenized": (ByLength(Dataset.from_dict({"text": ["x"]})), "have no input_ids to count"),
}


@pytest.mark.parametrize(("part", "message"), BAD.values(), ids=BAD.keys())
def test_bad_curricula_say_what_is_wrong(part, message):
    with pytest.raises(ValueError, match=message) as caught:
        made(part).check_dry()
    assert str(caught.value).startswith("stage 's': train_dataset")


def test_bad_arguments_are_refused_at_once():
    for wrong, message in [
        (lambda: Mixture({}), "expected weights by source"),
        (lambda: Mixture("a"), "expected weights by source"),
        (lambda: Mixture(["a", "a"]), "'a' is named twice"),
        (lambda: Mixture({"a": "Lnear(1, 0)"}), "did you mean 'Linear'"),
        (lambda: Mixture({"a": 1}, {"b": "a"}), "'b' has no weight"),
        (lambda: Mixture({"a": 1}, temperature=0), "temperature: expected a number above 0"),
        (lambda: Mixture({"a": 1}, weigh="rows"), "weigh: expected 'examples' or 'tokens'"),
        (lambda: Replay("a", 1.0, into="b"), "share: expected from 0 to below 1"),
        (lambda: ByDifficulty("a", by=3), "by: expected a column"),
        (lambda: ByLength("a", tokens=0), "tokens: expected a whole number"),
        (lambda: Ordered([]), "expected a list of sources"),
        (lambda: Mixture({"a": 1}, {"a": 3}), "expected the name of a source"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_scores_must_be_finite_numbers_for_every_row():
    for by, message in [
        (lambda rows: [1.0], "a number for each of 30 rows, got 1"),
        (lambda rows: [float("nan")] * len(rows), "row 0 scores nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            drawn(ByDifficulty("a", by=by))


class Noisy(torch.utils.data.Dataset):
    """A random transform, as of images."""

    def __len__(self):
        return 3

    def __getitem__(self, row):
        return {"row": row, "noise": float(torch.rand(()))}


def test_rows_beside_a_stream_are_transformed_anew_in_each_pass():
    part = Mixture({"noisy": 0.5, "s": 0.5}, {"noisy": Noisy(), "s": SOURCES["b"].to_iterable_dataset()})

    def read(start, count):
        stream = DrawnStream(made(part, 40), 7, "source")
        stream.start = start
        with preserve_random_state():
            return list(itertools.islice(stream, count))

    whole = read(0, 40)
    noise = [row["noise"] for row in whole if row["source"] == "noisy"]
    assert len(noise) == len(set(noise)) == 20
    assert read(17, 23) == whole[17:]


def test_order_of_equal_and_of_large_scores():
    assert sort_rows(np.array([2, 1, 2, 1]), descending=False).tolist() == [1, 3, 0, 2]
    assert sort_rows(np.array([2, 1, 2, 1]), descending=True).tolist() == [0, 2, 1, 3]
    assert sort_rows(np.array([2**62, 2**62 + 1]), descending=True).tolist() == [1, 0]
    assert sort_rows(np.array([1, 3], dtype=np.uint32), descending=True).tolist() == [1, 0]
