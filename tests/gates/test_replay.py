"""The gate that replays: cut anywhere and resumed is never cut, workers and prefetching change nothing, shares are declared."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_stages import Stage, StagedTrainer, recipes
from hf_stages.commands import cli
from hf_stages.commands.arms import Sources, arms_of
from hf_stages.commands.lr_trials import probe_of, trial_stage
from hf_stages.core.curves import Const, Linear
from hf_stages.core.ledger import Entry, Ledger
from hf_stages.data import ByLength, BySource, Lengths, Mixture
from hf_stages.gates import Forgetting, History
from hf_stages.losses import TaskLoss
from hf_stages.planning.measure_data import plan_for
from hf_stages.schedules import Fresh
from hf_stages.training.from_recipe import prepare
from tests.support import tiny
from tests.support.sameness import plain
from tests.support.versus_recipes import write
from tests.workers.cases import Pad, arguments


def counting(stride: int, rows: int, seed: int, length: int = 8) -> Dataset:
    starts = torch.randint(0, 60, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [[3 + (start + stride * i) % 60 for i in range(length)] for start in starts]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


# An epoch of ``code`` is five updates of eight, and the evaluations come after 3, 6 and 9: in the midst of one.
DATA = {"prose": counting(1, 30, 0), "code": counting(7, 34, 1), "more": counting(11, 10, 2, 5)}
STEPS = 12
PARTS = {
    "plain": "code",
    "ramp": Mixture({"code": Linear(1, 0.5), "more": Linear(0, 0.5)}),
    "tokens": Mixture({"code": 1, "more": 1}, weigh="tokens"),
    "lengths": ByLength("code", tokens=16),
    "stream": "code",
    "stream-tokens": Mixture({"code": 1, "more": 1}, weigh="tokens"),
}
GATE = {"budget": 0.0, "action": "replay", "share": 0.2, "most": 0.6}


@dataclass(frozen=True)
class Strict(Forgetting):
    """Finds every evaluation outside."""

    def _rounds(self, history):
        return [(log["step"], (1.0, "too much")) for log in history.logs if "eval_prose_loss" in log]


class Recorded(StagedTrainer):
    """Notes which rows each update saw."""

    stop_at = None

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.__dict__.setdefault("seen", []).append([row.tolist() for batch in batches for row in batch["input_ids"]])
        assert not any("drawn" in batch for batch in batches)
        if self.stop_at == len(self.seen):
            self.request_stop("here")
        return batches, items


def trainer(out, name="plain", *, gate=None, part=None, stage=None, data=None, before=None, batch=4, **changes):
    given = {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2, "save_steps": 50, **changes}
    args = arguments(out, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch, **given)
    data = dict(DATA) if data is None else data
    if "stream" in name:
        data["code"] = data["code"].to_iterable_dataset()
    gate = Strict(**GATE) if gate is None else gate
    stages = [
        Stage("first", "3 steps", train_dataset="prose", args={"eval_strategy": "no"}, **(before or {})),
        Stage(
            "second",
            f"{STEPS} steps",
            train_dataset=PARTS[name] if part is None else part,
            schedule=Fresh(peak=5e-2, shape=Const(1)),
            gates=gate if isinstance(gate, list) else [gate],
            **(stage or {}),
        ),
    ]
    sets = {name: DATA[name].select(range(2)) for name in ("prose", "code")}
    model = tiny.llama(initializer_range=0.1)
    return Recorded(model, args, stages=stages, train_dataset=data, eval_dataset=sets, data_collator=Pad())


def summary(out):
    return plain(out / "02-second" / "stage.json")


def events(out) -> list[tuple[int, float]]:
    return [(e["step"] - 3, e["value"]) for e in summary(out)["ledger"] if e["kind"] == "replay"]


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
    """34 rows are an epoch of five updates: the loader of the next one is new, and so is that of a run resumed there."""
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
    """Each row by its own source's, also where the stage's data are one source by its name; and other columns are no matter."""
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


def test_losses_by_source(tmp_path):
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


def test_one_gate_of_a_stage_replays(tmp_path):
    with pytest.raises(ValueError, match=r"gates: 2 of them replay"):
        trainer(tmp_path, gate=[Forgetting(**GATE), Forgetting(**{**GATE, "budget": 0.5})]).plan()


# ---- what it decides ------------------------------------------------------------------------------------------------


def decide(gate, *losses, entries=()):
    logs = [{"step": 10 * i, "eval_prose_loss": loss} for i, loss in enumerate(losses, start=1)]
    history = History(10 * len(losses), logs=logs, before={"eval_prose_loss": 2.0}, earlier=("prose",), entries=entries)
    found = gate(history)
    return None if found is None else (found.action, found.value)


def entry(step, kind="replay", value=0.1):
    return Entry(step, "code", kind, "", "Forgetting", value)


@pytest.mark.parametrize(
    ("losses", "entries", "answer"),
    [
        ([2.05], (), None),
        ([2.2], (), ("replay", 0.1)),
        ([2.2], (entry(10),), None),  # the evaluation that was acted on
        ([2.2, 2.2], (entry(10),), ("replay", 0.2)),
        ([2.2, 2.0, 2.2], (entry(10), entry(20, value=0.2)), ("replay", 0.3)),  # most
        ([2.2, 2.2], (entry(10, value=0.3),), ("alert", None)),
        ([2.2, 2.2, 2.2], (entry(10, value=0.3), entry(20, "alert", None)), None),
        ([2.2], (entry(10, "cut_lr", 0.5),), ("replay", 0.1)),  # another gate's cut is no share
    ],
)
def test_decides(losses, entries, answer):
    assert decide(Forgetting("5%", action="replay", most=0.3), *losses, entries=entries) == answer


def test_another_gates_share_is_no_cut():
    assert decide(Forgetting("5%", action="cut_lr", floor=0.4), 2.2, entries=(entry(5, value=0.1),)) == ("cut_lr", 0.5)
    ledger = Ledger()
    ledger.note(5, "code", "replay", "", value=0.1)
    ledger.note(6, "code", "cut_lr", "", value=0.5)
    assert ledger.lr_factor(["code"], 7) == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0}, "share: expected numbers above 0"),
        ({"share": 0.6}, "share at most most; got share=0.6, most=0.5"),
        ({"most": 1}, "below 1"),
        ({"action": "end", "source": "prose"}, "source: it is what 'replay' draws from"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Forgetting(**{"action": "replay", **options})


def test_reads_and_writes_as_yaml():
    text = """
sources: {prose: {path: a}, code: {path: b}}
stages:
  - {name: prose, until: 1 steps, train_dataset: prose}
  - name: code
    until: 1 steps
    train_dataset: code
    gates:
      - {use: Forgetting, action: replay, share: 0.05, source: {use: Mixture, weights: {prose: 1}}}
"""
    read = recipes.loads(text)
    assert read["code"].gates[0] == Forgetting(action="replay", share=0.05, source=Mixture({"prose": 1}))
    assert recipes.loads(recipes.dump(read)) == read
    with pytest.raises(ValueError, match=r"gates.*no source is called 'proze'"):
        recipes.loads(text.replace("{prose: 1}", "{proze: 1}"))
    with pytest.raises(ValueError, match=r"gates.*no source is called 'proze'"):
        recipes.loads(text.replace("{use: Mixture, weights: {prose: 1}}", "proze"))


def test_says_so_in_the_ledger(uncut):
    _, out = uncut("plain")
    first = next(e for e in summary(out)["ledger"] if e["kind"] == "replay")
    assert first["reason"] == "too much; 20 % of the examples come from earlier data from here on"


@pytest.fixture
def recipe(tmp_path):
    """A recipe's file, whose second stage has the gate; every evaluation is outside a budget of 0 %."""
    gate = {"use": "Forgetting", "budget": 0.0, "action": "replay", "share": 0.25}
    path = Path(write(tmp_path))
    content = json.loads(path.read_text())
    content["args"] |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    content["stages"][0]["until"] = "2 epochs"
    content["stages"][1] |= {"until": "1 epochs", "gates": [gate], "schedule": {"use": "Fresh", "peak": 0.1}}
    path.write_text(json.dumps(content))
    return path


def test_from_a_file_to_a_report(recipe, tmp_path, capsys):
    assert cli.main(["plan", str(recipe), "--batches"]) == 0
    planned = capsys.readouterr().out
    assert "language where the gate replays it" in planned
    assert cli.main(["run", str(recipe)]) == 0
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path / "out"), "--save", str(tmp_path / "report.html")]) == 0
    assert "come from earlier data from here on" in capsys.readouterr().out
    assert "replay: language: loss" in (tmp_path / "report.html").read_text()
    stage = json.loads((tmp_path / "out" / "02-code" / "stage.json").read_text())
    assert stage["steps"] == 6  # an epoch is one of its own data
    sources = stage["data"]["sources"]
    assert sources["language"]["examples"] > 0
    assert sources["language"]["share"] == pytest.approx(sources["language"]["declared"], abs=0.05)


def test_trials_and_arms_leave_the_gate_out_and_keep_the_data(recipe):
    """A trial at the declared rate is the stage, so it draws in the order of the stage's own data; arms draw what they say."""
    ready = prepare(recipes.load(recipe))
    plan = plan_for(ready.recipe, ready.args)
    probe = probe_of(ready, "code", replays=[0.0, 0.25])
    sources = Sources(ready.recipe, plan)
    alone, replayed = (trial_stage(probe, plan, sources, 1e-3, share) for share in (0.0, 0.25))
    assert (alone.gates, replayed.gates) == ((), ())
    assert (alone.train_dataset.source_names(), replayed.train_dataset.source_names()) == (
        ("code",),
        ("code", "language"),
    )
    own = plan_for(replace(ready.recipe, stages=[ready.recipe["language"], alone]), ready.args)["code"].blend
    assert [list(column) for column in own.at(range(24))] == [list(c) for c in plan["code"].blend.at(range(24))]
    arms = {arm.name: arm for arm in arms_of(ready.recipe, ready.args, ["joint", "replay"])}
    assert all(not stage.gates for arm in arms.values() for stage in arm.recipe.stages)
    assert arms["staged"].drawn[1] == {"code": 24}
    assert arms["joint"].examples == arms["staged"].examples
