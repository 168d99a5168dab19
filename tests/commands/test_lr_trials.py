"""Short trials from a boundary: what is tried, what is measured, what is picked."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from hf_stages import recipes
from hf_stages.commands import cli
from hf_stages.commands.arm_sources import Sources
from hf_stages.commands.lr_trials import plan_trials, sources_up_to, trial_stage
from hf_stages.data.curricula.replay import Replay
from hf_stages.planning.measure_data import plan_for
from hf_stages.reports.tables.probe_table import probe_table
from hf_stages.reports.trials import Trial, Trials
from hf_stages.training.from_recipe import prepare
from tests.support.versus_recipes import write


def trials(*each, budget=0.05, steps=20, whole=200):
    """(rate, replay, loss on code after, loss on language after); both were 4 and 2 before."""
    made = [
        Trial(rate, replay, {"code": 4.0, "language": 2.0}, {"code": code, "language": language})
        for rate, replay, code, language in each
    ]
    return Trials("code", steps, whole, 1e-3, ("code",), ("language",), budget, tuple(made))


def test_the_pick_is_the_largest_gain_within_the_budget():
    found = trials((1e-4, 0, 3.8, 1.99), (3e-4, 0, 3.5, 2.09), (1e-3, 0, 3.0, 2.11), (1e-3, 0.05, 3.1, 2.099))
    assert [round(t.gain(found.new), 6) for t in found.tried] == [0.05, 0.125, 0.25, 0.225]
    assert [round(t.forgotten(found.earlier), 6) for t in found.tried] == [-0.005, 0.045, 0.055, 0.0495]
    assert (found.pick.rate, found.pick.replay) == (1e-3, 0.05)
    text = probe_table(found)
    assert text.count("over budget") == 1
    assert "Pick: 1e-3 with 5 % replay" in text
    assert "20 of 200 updates" in text
    assert "10 times as many" in text


def test_the_domain_that_lost_most_counts_and_an_edge_is_told():
    before, after = {"code": 4.0, "a": 1.0, "b": 1.0}, {"code": 3.0, "a": 0.9, "b": 1.2}
    assert Trial(1e-3, 0, before, after).forgotten(("a", "b")) == pytest.approx(0.2)
    text = probe_table(trials((1e-4, 0, 3.8, 2.0), (1e-3, 0, 3.0, 2.0), steps=200))
    assert "highest rate tried" in text
    assert "squeezed" not in text
    assert "The next rate tried, 1e-3, is over the budget" in probe_table(
        trials((1e-4, 0, 3.8, 2.0), (1e-3, 0, 3.0, 2.5))
    )
    assert "lowest rate tried" in probe_table(trials((1e-4, 0, 3.0, 2.0), (1e-3, 0, 3.5, 2.0)))


def test_no_pick_without_a_gain_or_a_budget_kept():
    assert trials((1e-3, 0, 3.0, 2.5), (1e-4, 0, 4.1, 2.0)).pick is None
    nothing = Trials("code", 5, 9, 1e-3, ("code",), ("language",), 0.05, (Trial(1.0, 0, {}, {}),))
    assert nothing.pick is None
    assert "not finite" in probe_table(nothing)
    assert "No pick" in probe_table(nothing)


def test_a_pick_that_leaves_the_budget_in_full_gives_way_to_the_next():
    def whole(rate, replay, language):
        return Trial(rate, replay, {"code": 4.0, "language": 2.0}, {"code": 2.0, "language": language})

    found = trials((1e-4, 0, 3.8, 2.0), (3e-4, 0, 3.5, 2.09), (2e-4, 0.1, 3.6, 2.0), (1e-3, 0, 3.0, 2.5))
    assert found.next_to_confirm.same_as(found.pick)
    assert found.pick.rate == 3e-4
    once = replace(found, confirmed=(whole(3e-4, 0, 2.2),))
    assert once.pick is None
    assert (once.next_to_confirm.rate, once.next_to_confirm.replay) == (2e-4, 0.1)
    # One that forgets in full does so at a higher rate and with less replay; these are not tried.
    steeper = trials((1e-4, 0.1, 3.5, 2.0), (3e-4, 0, 3.6, 2.0), (5e-5, 0, 3.9, 2.0))
    steeper = replace(steeper, confirmed=(whole(1e-4, 0.1, 2.2),))
    assert steeper.next_to_confirm.rate == 5e-5
    twice = replace(once, confirmed=(*once.confirmed, whole(2e-4, 0.1, 2.05)))
    assert twice.next_to_confirm is None
    assert (twice.pick.rate, twice.pick.replay) == (2e-4, 0.1)
    text = probe_table(twice)
    assert "Pick: 2e-4 with 10 % replay" in text
    assert text.index("over budget", text.index("Over all 200 updates")) < text.index("kept")
    below = replace(found, confirmed=(whole(3e-4, 0, 2.2), whole(1e-4, 0, 2.0)))
    assert "The next rate tried, 3e-4, is over the budget" in probe_table(below)
    none = replace(found, confirmed=tuple(whole(t.rate, t.replay, 2.2) for t in found.candidates))
    assert none.next_to_confirm is None
    assert "No pick: over all of the stage's updates no candidate" in probe_table(none)


@pytest.fixture
def ready(tmp_path):
    return prepare(recipes.load(write(tmp_path)))


def test_a_trial_is_the_stage_at_another_rate(ready):
    plan = plan_for(ready.recipe, ready.args)
    probe = plan_trials(ready, "code", steps=2, replays=[0.0, 0.25])
    assert probe.rates == pytest.approx((5e-3 / 8, 5e-3 / 4, 5e-3 / 2, 5e-3, 1e-2))
    assert (probe.new, probe.earlier, probe.whole) == (("code",), ("language",), 4)
    tried = trial_stage(probe, plan, Sources(ready.recipe, plan), 1e-3, 0.0)
    assert (tried.name, str(tried.until), tried.schedule.to, tried.train_dataset) == ("code", "2 steps", 1e-3, "code")
    assert tried.schedule.optimizer == "carry"  # as declared
    replayed = trial_stage(probe, plan, Sources(ready.recipe, plan), 1e-3, 0.25)
    assert isinstance(replayed.train_dataset, Replay)
    assert replayed.train_dataset.source_names() == ("code", "language")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stage": "tools"}, "no stage is called 'tools'; there are language, code"),
        ({"stage": "language"}, "no boundary before it"),
        ({"stage": "code", "rates": [-1.0]}, "expected positive"),
        ({"stage": "code", "replays": [1.0]}, "below 1"),
        ({"stage": "code", "steps": 5}, "from 1 to 4"),
        ({"stage": "code", "steps": 2, "share": 0.5}, "got both"),
        ({"stage": "code", "share": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_tried_is_refused(ready, given, message):
    with pytest.raises(ValueError, match=message):
        plan_trials(ready, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_dataset": "code-eval"}, "no evaluation set measures what it brings"),
        ({"eval_dataset": {"code": "code-eval"}}, "measures what was learned before"),
        ({"stages": [{"name": "language", "until": "2 steps", "train_dataset": "language",
                      "schedule": {"use": "Fresh", "shape": "Step(((0, 1), (0.4, 0)))"}},
                     {"name": "code", "until": "2 steps", "train_dataset": "code", "schedule": "Resume"}]},
         r"Resume\(\) goes on at a rate of zero.*Rewarm\(to=1e-4\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        plan_trials(prepare(recipes.load(write(tmp_path, **changes))), "code")


def test_a_boundary_at_which_nothing_is_measured_is_refused(tmp_path):
    stages = [
        {"name": "language", "until": "6 steps", "train_dataset": "language", "eval_dataset": {}},
        {"name": "code", "until": "4 steps", "train_dataset": "code"},
    ]
    plan_trials(prepare(recipes.load(write(tmp_path, stages=stages))), "code")  # measured at its own first step
    own = [stages[0], {**stages[1], "eval_dataset": {"code": "code-eval"}}]
    with pytest.raises(
        ValueError, match=r"stage 'language': eval_dataset: is empty, .* and language cannot be compared"
    ):
        plan_trials(prepare(recipes.load(write(tmp_path, stages=own))), "code")
    later = [stages[0] | {"eval_dataset": None}, {**stages[1], "eval_dataset": {}}]
    with pytest.raises(ValueError, match=r"stage 'code': eval_dataset: is empty, .* and code, language cannot"):
        plan_trials(prepare(recipes.load(write(tmp_path, stages=later))), "code")


def test_only_stages_up_to_the_one_that_is_tried_must_be_countable(tmp_path):
    """Places of ByLength are no examples. Trials of the stage before, and any without replay, need not count them."""
    grouped = {"use": "ByLength", "source": "code", "tokens": 16}
    stages = [
        {"name": "language", "until": "6 steps", "train_dataset": "language"},
        {"name": "code", "until": "4 steps", "train_dataset": "code"},
        {"name": "short", "until": "2 steps", "train_dataset": grouped},
    ]
    ready = prepare(recipes.load(write(tmp_path, stages=stages)))
    plan = plan_for(ready.recipe, ready.args)
    probe = plan_trials(ready, "code", replays=[0.0, 0.25])
    assert sources_up_to(ready.recipe, plan, "code").of(plan["language"]) == {"language": 24}
    assert isinstance(
        trial_stage(probe, plan, sources_up_to(ready.recipe, plan, "code"), 1e-3, 0.25).train_dataset, Replay
    )
    shorter = replace(probe, stage="short", steps=2)
    assert trial_stage(shorter, plan, None, 1e-3, 0.0).train_dataset == plan["short"].stage.train_dataset
    with pytest.raises(ValueError, match="ByLength takes several rows"):
        plan_trials(ready, "short", replays=[0.25])


def test_a_share_of_replay_that_would_change_nothing_is_refused(tmp_path):
    mixture = {"use": "Mixture", "weights": {"language": 1, "code": 1}}
    stages = [
        {"name": "language", "until": "6 steps", "train_dataset": "language"},
        {"name": "code", "until": "4 steps", "train_dataset": mixture},
    ]
    ready = prepare(recipes.load(write(tmp_path, stages=stages)))
    with pytest.raises(ValueError, match="replay: stage 'code' reads all that stages before it read"):
        plan_trials(ready, "code", replays=[0.0, 0.25])
    plan_trials(ready, "code")


def test_trials_run_from_the_boundary_and_are_skipped_where_finished(tmp_path, capsys):
    recipe = write(tmp_path)
    argv = ["probe-lr", recipe, "--stage", "code", "--rates", "1e-4", "5e-3", "--replay", "0", "0.25", "--steps", "4"]
    assert cli.main([*argv, "--json", "--budget", "50%", "--save", str(tmp_path / "x.svg")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(t["rate"], t["replay"]) for t in found["trials"]] == [(1e-4, 0), (5e-3, 0), (1e-4, 0.25), (5e-3, 0.25)]
    assert len({t["before"]["language"] for t in found["trials"]}) == 1  # one boundary for all
    assert len({t["after"]["code"] for t in found["trials"]}) == 4
    assert found["pick"]["rate"] == 5e-3
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")
    out = tmp_path / "out"
    assert not (out / "02-code").exists()

    # The declared rate over the whole stage is the stage itself: same boundary, moments, batches and rates.
    written = {p: p.stat().st_mtime_ns for p in out.glob("probe-code/*/*/stage.json")}
    assert len(written) == 8
    assert cli.main(["run", recipe, "--resume"]) == 0
    whole = json.loads((out / "02-code" / "stage.json").read_text())["domains"]
    trial = json.loads((out / "probe-code" / "lr-0.005" / "02-code" / "stage.json").read_text())["domains"]
    assert trial == whole

    capsys.readouterr()
    assert cli.main([*argv, "--budget", "0"]) == 0
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert "budget 0 %" in capsys.readouterr().out


def test_the_pick_is_confirmed_by_the_whole_stage(tmp_path, capsys):
    recipe = write(tmp_path)
    argv = [
        "probe-lr",
        recipe,
        "--stage",
        "code",
        "--rates",
        "1e-4",
        "5e-3",
        "--steps",
        "2",
        "--budget",
        "50%",
        "--json",
    ]
    assert cli.main([*argv, "--confirm"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["rate"] for t in found["confirmed"]] == [found["pick"]["rate"]] == [5e-3]
    assert cli.main(["run", recipe, "--resume"]) == 0
    whole = json.loads((tmp_path / "out" / "02-code" / "stage.json").read_text())["domains"]
    assert found["confirmed"][0]["after"] == {name: domain["loss"] for name, domain in whole.items()}
    written = list((tmp_path / "out").glob("probe-code/whole-*"))
    assert [path.name for path in written] == ["whole-lr-0.005"]


def test_a_rate_that_diverges_is_a_row_and_not_tried_again(tmp_path, capsys):
    argv = ["probe-lr", write(tmp_path), "--stage", "code", "--rates", "1e30", "1e-3", "--steps", "4"]
    for _ in range(2):
        assert cli.main([*argv, "--json", "--save", str(tmp_path / "x.html")]) == 0
        shown = capsys.readouterr()
        assert [t["finite"] for t in json.loads(shown.out)["trials"]] == [False, True]
    assert "the loss was not finite" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget", "much"], "expected a share of the loss"),
        (["--budget", "500%"], "expected a share of the loss"),
        (["--save", "x.pdf"], ".html or .svg"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, capsys, argv, message):
    assert cli.main(["probe-lr", write(tmp_path), "--stage", "code", *argv]) == 2
    assert message in capsys.readouterr().err


def test_trials_collate_rows_and_domains_as_in_their_own_stages(tmp_path, capsys):
    second = {
        "name": "code",
        "until": "4 steps",
        "train_dataset": "code",
        "data_collator": {"use": "Lengths", "length": 4},
    }
    recipe = write(tmp_path, stages=[{"name": "language", "until": "4 steps", "train_dataset": "language"}, second])
    argv = ["probe-lr", recipe, "--stage", "code", "--rates", "1e-3", "--replay", "0", "0.25", "--steps", "4"]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(trial["finite"] for trial in found["trials"])
    tokens, items = [], []
    for share in ("", "-replay-0.25"):
        stage = json.loads(
            (tmp_path / "out" / "probe-code" / f"lr-0.001{share}" / "02-code" / "stage.json").read_text()
        )
        tokens.append(stage["tokens"])
        items.append({name: domain["items"] for name, domain in stage["domains"].items()})
    assert tokens == [16 * 4, 12 * 4 + 4 * 8]  # four of language, whole
    assert items == [{"language": 4 * 7, "code": 4 * 3}] * 2
    # What a trial began from is measured through the same collators, not as the boundary's own stage did.
    own = json.loads((tmp_path / "out" / "01-language" / "stage.json").read_text())["domains"]
    assert own["code"]["items"] == 4 * 7
    assert found["trials"][0]["before"]["code"] == stage["domains_start"]["code"]["loss"] != own["code"]["loss"]


def resuming(**more):
    first = {
        "name": "language",
        "until": "6 steps",
        "train_dataset": "language",
        "schedule": {"use": "Fresh", "warmup": "2 steps"},
    }
    return [first, {"name": "code", "until": "4 steps", "train_dataset": "code", "schedule": {"use": "Resume", **more}}]


def test_a_stage_that_resumes_is_tried_along_its_piece_of_the_parents_schedule(tmp_path):
    ready = prepare(recipes.load(write(tmp_path, stages=resuming())))
    plan = plan_for(ready.recipe, ready.args)
    probe = plan_trials(ready, "code", steps=2, rates=[1e-3, 4e-3])
    # By hand: two updates of warmup, then down to zero after ten; the second stage goes on at the sixth.
    assert (probe.declared, probe.resumes_to) == (pytest.approx(1e-2 * 4 / 8), 0)
    tried = trial_stage(probe, plan, Sources(ready.recipe, plan), 4e-3, 0.0)
    trial = plan_for(replace(ready.recipe, stages=[ready.recipe.stages[0], tried]), ready.args)
    assert [trial.lr_at("code", t) for t in (0.0, 0.5)] == pytest.approx([4e-3, 4e-3 * 2 / 4])
    assert tried.schedule.optimizer == "carry"
    assert plan_trials(ready, "code").rates == pytest.approx([5e-3 * f for f in (1 / 8, 1 / 4, 1 / 2, 1, 2)])


def test_a_trial_of_a_resumed_stage_at_its_declared_rate_is_the_stage(tmp_path, capsys):
    recipe = write(tmp_path, stages=resuming())
    argv = ["probe-lr", recipe, "--stage", "code", "--rates", "5e-3", "--steps", "4", "--budget", "90%"]
    assert cli.main(argv) == 0
    assert "write Rewarm(to=0.005, warmup=0, then='Linear(1, 0)')" in capsys.readouterr().out
    assert cli.main(["run", recipe, "--resume"]) == 0
    out = tmp_path / "out"
    whole = json.loads((out / "02-code" / "stage.json").read_text())
    trial = json.loads((out / "probe-code" / "lr-0.005" / "02-code" / "stage.json").read_text())
    for domain in ("language", "code"):
        assert trial["domains"][domain]["loss"] == pytest.approx(whole["domains"][domain]["loss"], rel=1e-6)
    assert whole["domains"]["code"]["loss"] < whole["domains_start"]["code"]["loss"] - 1e-4
