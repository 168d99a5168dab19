"""A run whose gate replays: cut anywhere and resumed it is the uncut run, with workers and in other batches."""

from __future__ import annotations

import shutil

import pytest
import torch
from datasets import Dataset

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.data import BySource, Lengths, Mixture
from hf_stages.gates import Forgetting
from hf_stages.losses import TaskLoss
from tests.gates.replaying import DATA, GATE, PARTS, STEPS, events, summary, trainer
from tests.support import tiny
from tests.workers.cases import Pad, arguments


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    found = {}

    def run(name):
        if name not in found:
            out = tmp_path_factory.mktemp(name)
            whole = trainer(out, name)
            whole.train()
            found[name] = whole, out
        return found[name]

    return run


def assert_same_run(mine, out, whole, theirs, seen):
    assert seen == whole.seen
    for key, weight in whole.model.state_dict().items():
        assert torch.equal(weight, mine.model.state_dict()[key]), key
    assert summary(out)["data"] == summary(theirs)["data"]
    assert events(out) == events(theirs)
    shares = [[log.get("share_prose") for log in one.state.log_history] for one in (mine, whole)]
    assert shares[0] == shares[1]


DEAR = ("ramp", "lengths", "stream-tokens")


def dear(name, *more):
    return pytest.param(name, *more, marks=pytest.mark.slow) if name in DEAR else (name, *more) if more else name


@pytest.mark.parametrize("name", [dear(name) for name in PARTS])
def test_realized_is_declared(uncut, name):
    """The gate acts after updates 3, 6 and 9; then the share is at its most and it only says so, once."""
    _, out = uncut(name)
    assert events(out) == [(3, 0.2), (6, 0.4), (9, 0.6)]
    told = [e for e in summary(out)["ledger"] if e["kind"] == "alert"]
    assert len(told) <= 2  # and once as the stage ends
    data = summary(out)["data"]
    prose = data["sources"]["prose"]
    assert prose["declared"] == pytest.approx((0.2 + 0.4 + 0.6) / 4, abs=0.02)
    assert prose["share"] == pytest.approx(prose["declared"], abs=0.02)
    over = [(point["t"], point["declared"]["prose"], point["share"]["prose"]) for point in data["over_time"]]
    for t, declared, _ in over:
        assert declared == pytest.approx([0, 0.2, 0.4, 0.6][int(t * STEPS // 3)], abs=1e-6), t
    assert [share for t, _, share in over if t < 0.25] == [0, 0, 0]


def places(name):
    """At, before and after each event; the dearer ones at fewer."""
    return {"plain": (2, 3, 4, 8), "tokens": (7,), "stream": (3,)}.get(name, (4,))


@pytest.mark.parametrize(("name", "cut"), [dear(name, cut) for name in PARTS for cut in places(name)])
def test_cut_and_resumed_is_never_cut(uncut, name, cut, tmp_path):
    whole, out = uncut(name)
    first = trainer(tmp_path, name)
    first.stop_at = 3 + cut
    with pytest.raises(RuntimeError, match="stopped at step"):
        first.train()
    second = trainer(tmp_path, name)
    second.train(resume_from_checkpoint=True)
    assert_same_run(second, tmp_path, whole, out, first.seen + second.seen)


@pytest.mark.parametrize(
    ("name", "persistent"),
    [("plain", False), *(pytest.param(*o, marks=pytest.mark.slow) for o in (("tokens", True), ("stream", True)))],
)
def test_workers_change_nothing(uncut, name, persistent, tmp_path):
    """They fetch several batches ahead, of data that an event then changes."""
    whole, out = uncut(name)
    workers = {"dataloader_num_workers": 1 if name == "stream" else 2, "dataloader_persistent_workers": persistent}
    other = trainer(tmp_path, name, **workers)
    other.train()
    assert_same_run(other, tmp_path, whole, out, other.seen)


@pytest.mark.parametrize("name", ["plain", pytest.param("tokens", marks=pytest.mark.slow)])
def test_batches_of_another_cut_hold_the_same_rows(uncut, name, tmp_path):
    whole, _ = uncut(name)
    other = trainer(tmp_path, name, batch=8)
    other.train()
    strip = lambda seen: [[[i for i in row if i] for row in rows] for rows in seen]  # noqa: E731
    assert strip(other.seen) == strip(whole.seen)


def test_an_event_at_the_end_of_an_epoch(tmp_path):
    """34 rows are an epoch of five updates: the next one has a new loader, and so has a run resumed there."""
    whole = trainer(tmp_path / "whole", eval_strategy="epoch")
    whole.train()
    assert events(tmp_path / "whole") == [(5, 0.2), (10, 0.4)]
    first = trainer(tmp_path / "cut", eval_strategy="epoch", save_strategy="epoch")
    first.stop_at = 3 + 7
    with pytest.raises(RuntimeError, match="stopped at step"):
        first.train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-10")
    second = trainer(tmp_path / "cut", eval_strategy="epoch", save_strategy="epoch")
    second.train(resume_from_checkpoint=True)  # from checkpoint-8, of an epoch's end
    assert_same_run(second, tmp_path / "cut", whole, tmp_path / "whole", first.seen[:8] + second.seen)


def test_curves_of_a_collator_stand_where_the_update_does(tmp_path):
    """A collator with progress reads it off the batch; the loader made anew brings it along."""
    collator = {"data_collator": Lengths(Linear(4, 8), collator=Pad())}
    whole = trainer(tmp_path / "whole", stage=collator)
    whole.train()
    widths = [len(rows[0]) for rows in whole.seen[3:]]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (4, 8)
    workers = trainer(tmp_path / "workers", stage=collator, dataloader_num_workers=2)
    workers.train()
    assert workers.seen == whole.seen


def test_replays_what_the_stages_before_drew(tmp_path):
    """As much of each as they drew, not as they are large; and not what the stage reads itself."""
    before = {"train_dataset": Mixture({"prose": 3, "more": 1, "code": 1})}
    plan = StagedTrainer(
        tiny.llama(),
        arguments(tmp_path, eval_strategy="steps", eval_steps=3, per_device_train_batch_size=8),
        stages=[
            Stage("first", "10 steps", **before),
            Stage("other", "10 steps", train_dataset="more", parents=()),
            Stage("second", "50 steps", train_dataset="code", parents="first", gates=[Forgetting(**GATE)]),
        ],
        train_dataset=dict(DATA),
        eval_dataset={"prose": DATA["prose"], "code": DATA["code"]},
    ).plan()
    blend = plan["second"].blend
    assert blend.names == ("code", "prose", "more")
    blend.replay(((0, 0.4),))
    assert blend.declared_shares(0, 400) == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)


@pytest.mark.parametrize("source", ["more", Mixture({"more": 1, "prose": 1}), DATA["more"]])
def test_a_source_of_its_own(source, tmp_path):
    plan = trainer(tmp_path, gate=Forgetting(**GATE, source=source)).plan()
    named = {"replay"} if source is DATA["more"] else {"more"} if source == "more" else {"more", "prose"}
    assert set(plan["second"].blend.names) == {"code", *named}


def test_collators_by_source(tmp_path):
    """Each row by its own source's, also where the stage's data are one source by name; other columns do not matter."""
    only = [{"input_ids": row} for row in DATA["prose"]["input_ids"]]
    data = {**DATA, "prose": Dataset.from_list(only)}
    collator = BySource({"code": Lengths(6), "prose": Lengths(3)})
    assert trainer(tmp_path, data=data, stage={"data_collator": collator}).plan()["second"].blend.names == (
        "code",
        "prose",
    )
    run = trainer(tmp_path, stage={"data_collator": collator})
    run.train()
    stride = lambda row: row[1] - row[0] if row[1] > row[0] else row[1] - row[0] + 60  # noqa: E731
    widths = {(stride(row), sum(i > 0 for i in row)) for rows in run.seen[3:] for row in rows}
    assert widths == {(7, 6), (1, 3)}


def test_losses_by_source_need_one_for_what_is_replayed(tmp_path):
    made = trainer(tmp_path, stage={"loss": {"code": TaskLoss(), "prose": 0.5 * TaskLoss()}})
    made.train()
    assert events(tmp_path)
    with pytest.raises(ValueError, match=r"'prose' of train_dataset has no loss"):
        trainer(tmp_path / "no", stage={"loss": {"code": TaskLoss()}}).plan()


ODD = Dataset.from_dict({"text": ["a"] * 30})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gate": Forgetting(**GATE, source="poems")},
            r"source: no source is called 'poems'; there are prose, code, more",
        ),
        ({"gate": Forgetting(**GATE, source=Mixture({"poems": 1}))}, "source: no source is called 'poems'"),
        ({"gate": Forgetting(**GATE, source=7)}, "source: expected the name of a source"),
        ({"part": "prose"}, "so there is nothing to replay; say what"),
        ({"gate": Forgetting(**GATE, source="code")}, "drawn from in two places"),
        (
            {"data": {**DATA, "prose": ODD}},
            r"rows of 'prose' \(columns text\) .* only one of them has input_ids, labels",
        ),
        (
            {"gate": Forgetting(**GATE, source=Mixture({"more": 1}, on_dry="stop"))},
            r"'more' runs dry: .*\(this is at Forgetting\(most=0.6\), from the first update on\)",
        ),
        ({"train_sampling_strategy": "group_by_length"}, "as has what a gate may replay into"),
    ],
)
def test_refused_before_the_first_step(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).plan()


def test_says_so_in_the_ledger(uncut):
    _, out = uncut("plain")
    first = next(e for e in summary(out)["ledger"] if e["kind"] == "replay")
    assert first["reason"] == "too much; 20 % of the examples come from earlier data from here on"
