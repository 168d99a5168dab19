"""Stages on curricula: cut anywhere and resumed is never cut, whatever the workers; realized is what was declared."""

from __future__ import annotations

import json
import re

import pytest
import torch
from datasets import Dataset

from hf_stages import Stage, StagedTrainer, recipes
from hf_stages.core.curves import Linear, Step
from hf_stages.data import ByDifficulty, ByLength, Mixture, Ordered, Replay
from hf_stages.losses import TaskLoss
from tests.support import tiny
from tests.support.sameness import plain
from tests.workers.cases import Pad, arguments

RAMP = {"a": Linear(1, 0.3), "b": Linear(0, 0.7)}
DATA = {"a": tiny.lm_data(30, 8), "b": tiny.lm_data(12, 5, seed=1), "c": tiny.lm_data(40, 6, seed=2)}


class Recorded(StagedTrainer):
    """Notes which rows each update saw, in their order."""

    stop_at = None

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        rows = [row[row > 0].tolist() for batch in batches for row in batch["input_ids"]]
        self.__dict__.setdefault("seen", []).append(rows)
        assert not any("drawn" in batch or "source" in batch for batch in batches if self.recipe["one"].loss is None)
        if self.stop_at == len(self.seen):
            self.request_stop("here")
        return batches, items


def trainer(out, part, *, steps=11, data=DATA, batch=4, accumulation=2, stage=None, **changes):
    args = arguments(
        out,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **{"logging_steps": 3, **changes},
    )
    stages = [Stage("one", f"{steps} steps", train_dataset=part, **(stage or {}))]
    return Recorded(tiny.llama(), args, stages=stages, train_dataset=data, data_collator=Pad())


def summary(out):
    return plain(out / "01-one" / "stage.json")


def streams():
    return {**DATA, "b": DATA["b"].to_iterable_dataset()}


PARTS = {
    "ramp": lambda: (Mixture(RAMP), DATA),
    "tokens": lambda: (Mixture(RAMP, weigh="tokens"), DATA),
    "nested": lambda: (Replay("b", 0.2, into=Mixture({"a": 1, "c": Linear(0, 1)})), DATA),
    "difficulty": lambda: (Mixture({"a": 1, "c": 1}, {"c": ByDifficulty("c", by=hardness, window=4)}), DATA),
    "lengths": lambda: (Mixture({"a": 1, "b": 1}, {"b": ByLength("b", tokens=11)}), DATA),
    "stream": lambda: (Mixture(RAMP), streams()),
    "stream-tokens": lambda: (Mixture(RAMP, weigh="tokens"), streams()),
}


def hardness(rows):
    return [sum(row["input_ids"]) for row in rows]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Every part's run without a cut, trained once."""
    found = {}

    def run(name):
        if name not in found:
            part, data = PARTS[name]()
            out = tmp_path_factory.mktemp(name)
            whole = trainer(out, part, data=data, max_steps=1 if "stream" in name else -1)
            whole.train()
            found[name] = whole, out
        return found[name]

    return run


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("draw", [0, 1])
def test_cut_mid_ramp_and_resumed_is_never_cut(uncut, name, draw, tmp_path):
    whole, out = uncut(name)
    cut = int(torch.randint(1, 11, (1,), generator=torch.Generator().manual_seed(100 * draw + sum(map(ord, name)))))
    part, data = PARTS[name]()
    first = trainer(tmp_path, part, data=data, max_steps=1 if "stream" in name else -1)
    first.stop_at = cut
    with pytest.raises(RuntimeError, match="stopped at step"):
        first.train()
    part, data = PARTS[name]()
    second = trainer(tmp_path, part, data=data, max_steps=1 if "stream" in name else -1)
    second.train(resume_from_checkpoint=True)
    assert first.seen + second.seen == whole.seen, cut
    for key, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[key]), key
    assert summary(tmp_path)["data"] == summary(out)["data"]
    assert [log.get("share_a") for log in second.state.log_history] == [
        log.get("share_a") for log in whole.state.log_history
    ]


@pytest.mark.parametrize("name", ["ramp", "tokens", "lengths", "stream"])
def test_workers_and_batches_change_nothing(uncut, name, tmp_path):
    whole, _ = uncut(name)
    part, data = PARTS[name]()
    workers = 1 if name == "stream" else 2
    other = trainer(
        tmp_path,
        part,
        data=data,
        batch=8,
        accumulation=1,
        dataloader_num_workers=workers,
        max_steps=1 if name == "stream" else -1,
    )
    other.train()
    assert [sorted(rows) for rows in other.seen] == [sorted(rows) for rows in whole.seen]


@pytest.mark.parametrize("name", ["ramp", "nested", "tokens", "stream"])
def test_realized_is_declared(uncut, name):
    whole, out = uncut(name)
    data = summary(out)["data"]
    widest = 8 if name == "tokens" else 1.5  # tokens of a row; a draw and a half
    total = sum(one["tokens" if name == "tokens" else "examples"] for one in data["sources"].values())
    for one in data["sources"].values():
        assert abs(one["share"] - one["declared"]) * total <= widest
    for point in data["over_time"]:
        for source, share in point["share"].items():
            assert share == pytest.approx(point["declared"][source], abs=0.21)
    rows = [tuple(row) for update in whole.seen for row in update]
    assert sum(one["examples"] for one in data["sources"].values()) == len(rows) == 88
    assert sum(one["tokens"] for one in data["sources"].values()) == sum(map(len, rows))
    known = {tuple(row["input_ids"]) for row in DATA["a"]}
    assert data["sources"]["a"]["examples"] == sum(row in known for row in rows)
    if name == "ramp":
        assert data["sources"]["b"]["passes"] == pytest.approx(data["sources"]["b"]["examples"] / 12, abs=1e-3)
        assert data["sources"]["b"]["declared"] == pytest.approx(0.35, abs=0.01)


def test_losses_by_source_take_the_names_of_a_mixture(tmp_path):
    loss = {"a": TaskLoss(), "b": 0.5 * TaskLoss()}
    run = trainer(tmp_path, Mixture(RAMP), stage={"loss": loss}, logging_steps=1)
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    assert all(log["loss_TaskLoss_b"] > 0 for log in logs[3:])
    assert logs[0]["share_b"] == 0.0
    assert logs[0]["loss_TaskLoss_b"] == 0.0
    with pytest.raises(ValueError, match="'b' of train_dataset has no loss"):
        trainer(tmp_path, Mixture(RAMP), stage={"loss": {"a": TaskLoss()}}).plan()


def test_a_dict_a_name_and_the_trainers_own_curriculum(tmp_path):
    plan = trainer(tmp_path, {"a": DATA["a"], "b": DATA["b"]}).plan()
    assert plan["one"].size.examples == 42
    plan = trainer(tmp_path, None, data=Ordered([DATA["a"], DATA["b"]])).plan()
    assert plan["one"].blend.names == ("part-1", "part-2")
    plan = trainer(tmp_path, Replay(DATA["b"], 0.5), data=DATA["a"]).plan()
    assert plan["one"].size.examples == 60
    assert trainer(tmp_path, "a").plan()["one"].blend is None
    with pytest.raises(ValueError, match="expected one dataset, got named ones"):
        trainer(tmp_path, None).plan()
    with pytest.raises(ValueError, match=r"expected stages=\[...\] with it"):
        StagedTrainer(tiny.llama(), arguments(tmp_path), train_dataset=Mixture(RAMP))


def test_epochs_are_whole_updates(tmp_path):
    run = Recorded(
        tiny.llama(),
        arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2),
        data_collator=Pad(),
        stages=[Stage("one", "2 epochs", train_dataset=Mixture(["a", "b"]))],
        train_dataset=DATA,
    )
    assert run.plan()["one"].steps == 12  # 42 examples, 8 per update
    run.train()
    assert {len(rows) for rows in run.seen} == {8}
    first = [tuple(row) for rows in run.seen[:5] for row in rows]
    assert len(set(first)) == 40


REFUSED = {
    "unknown": (
        Mixture({"a": 1, "nope": 1}),
        {},
        "stage 'one': train_dataset: 'nope': no source is called 'nope'; there are a, b, c",
    ),
    "negative": (Mixture({"a": 1, "b": Linear(1, -1)}), {}, "Mixture: weights: 'b' weighs"),
    "zero": (Mixture({"a": Step(((0, 1), (0.5, 0)))}), {}, "weights: all are 0 at t="),
    "dry": (Mixture({"a": 1, "b": 1}, on_dry="stop"), {}, "'a' runs dry: the stage draws 44 of it, and 30 are allowed"),
    "grouped": (Mixture(RAMP), {"train_sampling_strategy": "group_by_length"}, "a curriculum has its own"),
    "workers": (Mixture(RAMP), {"dataloader_num_workers": 2, "data": streams()}, "a stream read by 2 workers"),
    "stream-cap": (
        Mixture(RAMP, max_repeats=2),
        {"data": streams()},
        "'b' is a stream without a length; leave max_repeats out",
    ),
    "stream-order": (Ordered(["b", "a"]), {"data": streams()}, "so nobody knows when the next begins; put it last"),
    "into": (Replay("a", 0.5), {}, "Replay: into: expected what the stage is about"),
}


@pytest.mark.parametrize(("part", "changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_before_the_first_step(part, changes, message, tmp_path):
    changes = {"max_steps": 1, **changes} if "data" in changes else changes
    run = trainer(tmp_path, part, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        run.plan()


def test_a_cap_that_shares_of_tokens_would_ignore_is_refused():
    with pytest.raises(ValueError, match="max_repeats: shares of tokens"):
        Mixture({"a": 1, "b": 1}, weigh="tokens", max_repeats=2)
    assert Mixture({"a": 1, "b": 1}, weigh="tokens", max_repeats=2, on_dry="stop").max_repeats == 2


def test_a_stream_that_may_not_repeat_runs_dry(tmp_path):
    run = trainer(tmp_path, Mixture({"a": 1, "b": 1}, on_dry="stop"), data=streams(), max_steps=1, steps=3)
    run.train()
    run = trainer(tmp_path / "longer", Mixture({"c": 1, "b": 1}, on_dry="stop"), data=streams(), max_steps=1, steps=9)
    with pytest.raises(ValueError, match="'b' ran dry after 12 examples"):
        run.train()


def test_yaml_reads_back_equal_and_names_places():
    text = """
sources: {a: {path: json, data_files: a.jsonl}, b: {path: json, data_files: b.jsonl}}
stages:
  - name: one
    until: 9 steps
    train_dataset:
      use: Mixture
      weights: {a: {use: Linear, start: 1, end: 0.3}, b: "Linear(0, 0.7)", rest: 0.1}
      sources:
        rest:
          use: Replay
          source: b
          share: 0.1
          into: {use: ByDifficulty, source: {use: Source, path: json, data_files: c.jsonl}}
      max_repeats: 4
  - {name: two, until: 1 steps, train_dataset: {use: Ordered, sources: [a, b]}}
  - {name: three, until: 1 steps, train_dataset: {x: a, y: {use: ByLength, source: b, tokens: 64}}}
"""
    recipe = recipes.loads(text)
    part = recipe.stages[0].train_dataset
    assert part.weights == {"a": Linear(1, 0.3), "b": Linear(0, 0.7), "rest": 0.1}
    assert part.source_names() == ("a", "b")
    again = recipes.loads(recipes.dump(recipe))
    assert again == recipe
    assert recipes.dump(again) == recipes.dump(recipe)
    with pytest.raises(
        recipes.RecipeError, match=r"stages\[1\].train_dataset: no source is called 'aa'; did you mean 'a'"
    ):
        recipes.loads(text.replace("[a, b]", "[aa, b]"))
    with pytest.raises(recipes.RecipeError, match=r"train_dataset.weights: 'b' weighs|did you mean 'Linear'"):
        recipes.loads(text.replace("Linear(0, 0.7)", "Lnear(0, 0.7)"))
    with pytest.raises(recipes.RecipeError, match="did you mean 'max_repeats'"):
        recipes.loads(text.replace("max_repeats", "max_repeat"))
    with pytest.raises(recipes.RecipeError, match="Ordered is for training"):
        recipes.loads(text + "eval_dataset: {use: Ordered, sources: [a]}\n")


def test_rows_at_hand_are_not_written_out():
    part = Mixture({"x": 1.0}, {"x": [{"input_ids": [1, 2]}] * 3})
    written = recipes.to_dict(Stage("one", "1 steps", train_dataset=part))
    assert written["train_dataset"]["sources"]["x"]["in_memory"]
    data = Dataset.from_dict({"input_ids": [[1]]})
    written = recipes.to_dict(Stage("one", "1 steps", train_dataset={"x": data, "y": "b"}))
    assert written["train_dataset"]["x"]["in_memory"] == "dataset"
    assert json.dumps(written)


def test_an_edited_mixture_is_said_to_be(tmp_path):
    first = trainer(tmp_path, Mixture(RAMP))
    first.stop_at = 3
    with pytest.raises(RuntimeError):
        first.train()
    other = trainer(tmp_path, Mixture({**RAMP, "b": Linear(0, 0.6)}))
    with pytest.raises(ValueError, match=r"train_dataset.curriculum.weights.b.end: 0.7 -> 0.6"):
        other.train(resume_from_checkpoint=True)
