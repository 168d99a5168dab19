"""Arms: derived with equal updates, examples, rates and weights; run over seeds; skipped where finished."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ElementTree

import pytest

from hf_stages import StagedTrainer, recipes
from hf_stages.commands import cli
from hf_stages.commands.arm_runs import Trainings, run_versus
from hf_stages.commands.arms import LATE, build_arms
from hf_stages.data import BySource, Lengths
from hf_stages.planning.measure_data import plan_for
from hf_stages.reports.arms import compare
from hf_stages.training.from_recipe import prepare
from tests.support.versus_recipes import write


@pytest.fixture
def prepared(tmp_path):
    def make(**changes):
        return prepare(recipes.load(write(tmp_path, **changes)))

    return make


def stages(until=("6 steps", "4 steps"), **second):
    return [
        {"name": "language", "until": until[0], "train_dataset": "language"},
        {"name": "code", "until": until[1], **{"train_dataset": "code", **second}},
    ]


def derived(prepared, *names, **options):
    return {arm.name: arm for arm in build_arms(prepared.recipe, prepared.args, names, **options)}


def test_joint_has_the_staged_runs_updates_examples_and_rates(prepared):
    ready = prepared()
    arms = derived(ready, "joint", "annealed", "replay")
    staged, joint = arms["staged"], arms["joint"]
    assert staged.examples == {"language": 24, "code": 16}
    for arm in arms.values():
        assert arm.updates == 10
        assert sum(arm.examples.values()) == 40
        assert arm.lr_sum == pytest.approx(staged.lr_sum, rel=1e-6)
        assert arm.recipe.eval_dataset.keys() == {"language", "code"}
        assert arm.recipe.model == ready.recipe.model
    assert joint.examples == staged.examples
    # By hand: linear decay after two updates of warmup, over all ten.
    shape = [k / 2 if k < 2 else (10 - k) / 8 for k in range(10)]
    assert joint.lr_peak == pytest.approx(staged.lr_sum / sum(shape))
    plan = plan_for(joint.recipe, ready.args)
    assert [plan.lr_at("joint", k / 10) for k in range(10)] == pytest.approx([joint.lr_peak * s for s in shape])
    assert derived(ready, "joint", lr="peak")["joint"].lr_peak == pytest.approx(1e-2)
    assert derived(ready, "joint", lr=7e-3)["joint"].lr_peak == pytest.approx(7e-3)


def test_annealed_moves_the_last_source_late_and_keeps_its_examples(prepared):
    arm = derived(prepared(stages=stages(("60 steps", "40 steps"))), "annealed")["annealed"]
    assert arm.examples["code"] == pytest.approx(160, abs=2)
    weights = arm.recipe.stages[0].train_dataset.weights
    shares = [weights["code"](t) / (weights["code"](t) + weights["language"](t)) for t in (0.0, 0.79, 0.81, 1.0)]
    assert shares[0] == shares[1] < 0.4 < shares[2] == shares[3] == pytest.approx(0.7)
    assert (1 - LATE) * shares[0] + LATE * shares[3] == pytest.approx(0.4)


def test_replay_takes_the_place_of_new_examples(prepared):
    arm = derived(prepared(stages=stages(("6 steps", "2 epochs"))), "replay", replay=0.25)["replay"]
    assert arm.updates == 6 + 12  # not more for the replayed ones
    assert dict(arm.drawn[0]) == {"language": 24}
    assert dict(arm.drawn[1]) == {"code": 36, "language": 12}


def test_one_source_in_two_stages_is_one_source(prepared):
    more = [*stages(), {"name": "back", "until": "2 steps", "train_dataset": "language"}]
    assert derived(prepared(stages=more), "joint")["joint"].examples == {"language": 32, "code": 16}


def ramp(**more):
    weights = {"language": "Linear(1, 0.5)", "code": "Linear(0, 0.5)"}
    return [
        *stages(("6 steps", "8 steps"))[:1],
        {"name": "ramp", "until": "8 steps", "train_dataset": {"use": "Mixture", "weights": weights, **more}},
    ]


def test_a_stage_that_is_a_mixture_gives_what_it_draws(prepared):
    arm = derived(prepared(stages=ramp()), "joint")["joint"]
    assert arm.examples == {"language": pytest.approx(24 + 24, abs=1), "code": pytest.approx(8, abs=1)}
    with pytest.raises(ValueError, match="replay: every later stage reads the earlier sources itself"):
        derived(prepared(stages=ramp()), "replay")


def test_a_source_by_another_name_counts_as_itself(prepared, tmp_path):
    """Else the tokens read of ``hard`` weigh nothing in the mixture loss, whose weights are those of ``code``."""
    hard = {"use": "ByDifficulty", "source": "code"}
    data = {"use": "Mixture", "weights": {"language": 1, "hard": 1}, "sources": {"hard": hard}}
    ready = prepared(stages=[*stages(("2 steps", "2 steps"), train_dataset=data)])
    arms = build_arms(ready.recipe, ready.args, ["staged"])
    found = compare(run_versus(Trainings(ready), arms, [0], tmp_path / "versus"))
    assert found.runs[0].source_tokens == {"language": 96, "code": 32}
    assert found.weights == {"language": 0.75, "code": 0.25}


def test_shares_of_tokens_become_examples(prepared, tmp_path):
    ready = prepared(stages=ramp(weigh="tokens"))
    arms = derived(ready, "joint")
    # All rows are equally long here, so shares of tokens are shares of examples.
    assert arms["staged"].examples == {"language": pytest.approx(48, abs=1), "code": pytest.approx(8, abs=1)}


def test_the_last_batch_of_an_epoch_counts_as_what_it_holds(prepared):
    args = {"output_dir": "out", "per_device_train_batch_size": 3, "use_cpu": True, "report_to": "none"}
    ready = prepared(stages=stages(("2 epochs", "4 steps")), args=args)
    staged = derived(ready, "joint")["staged"]
    assert staged.examples == {"language": 80, "code": 12}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"stages": stages()[:1]}, {}, "nothing to compare"),
        ({"eval_dataset": None}, {}, "'language': eval_dataset: expected named evaluation sets"),
        ({"eval_dataset": "code-eval"}, {}, "expected named evaluation sets"),
        ({"stages": stages(eval_dataset="code-eval")}, {}, "stage 'code': eval_dataset: expected named sets"),
        ({}, {"stages": ["language", "tools"]}, "no stage is called 'tools'"),
        ({}, {"stages": ["code"]}, "nothing to compare"),
        ({}, {"lr": -1.0}, "expected a positive peak"),
        ({"stages": stages(parents=[])}, {}, "does not go on from 'language'"),
        ({"stages": stages(args={"per_device_train_batch_size": 2})}, {}, "2 examples per update, 4 in 'language'"),
        ({"stages": stages(transforms=[{"use": "Freeze", "patterns": ["embed"]}])}, {}, "transforms: Freeze"),
        ({"stages": stages(loss={"use": "TaskLoss", "weight": 0.5})}, {}, "stage 'code': loss: differs"),
        (
            {"stages": stages(args={"weight_decay": 0.1})},
            {},
            "stage 'code': args: weight_decay: 0.1 here and None in 'language'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(prepared, changes, options, message):
    ready = prepared(**changes)
    with pytest.raises(ValueError, match=message):
        build_arms(ready.recipe, ready.args, ["joint"], **options)


def test_a_real_comparison_and_its_resumption(tmp_path, capsys, monkeypatch):
    recipe, argv = write(tmp_path), ["--seeds", "0", "1", "--arms", "joint"]
    real, calls = StagedTrainer.training_step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 27:  # in the second stage of the second seed's staged arm
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(StagedTrainer, "training_step", step)
    assert cli.main(["versus", recipe, *argv]) == 130
    assert "The same command goes on with it." in capsys.readouterr().err
    assert cli.main(["versus", recipe, *argv, "--json", "--save", str(tmp_path / "x.html")]) == 0
    assert len(calls) == 40
    found = json.loads(capsys.readouterr().out)  # and nothing else on stdout
    assert found["unequal"] == []
    staged, joint = (found["arms"][name]["runs"] for name in ("staged", "joint"))
    for one, other in zip(staged, joint, strict=True):
        assert one["before"] == other["before"]  # the same initial weights
        assert (one["updates"], one["tokens"], one["examples"]) == (10, 320, {"language": 24, "code": 16})
        assert (one["updates"], one["tokens"]) == (other["updates"], other["tokens"])
        assert (one["examples"], one["tokens_by_source"]) == (other["examples"], other["tokens_by_source"])
        assert one["final"] != other["final"]
    assert staged[0]["before"] != staged[1]["before"]
    losses = [run["final"]["code"]["loss"] for run in joint]
    measured = found["domains"]["code"]["loss"]["arms"]["joint"]
    assert measured["mean"] == pytest.approx(sum(losses) / 2)
    assert measured["spread"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert found["mixture"]["weights"] == {"language": pytest.approx(0.6), "code": pytest.approx(0.4)}
    page = (tmp_path / "x.html").read_text()
    assert "loss over seconds of training" in page
    assert "mixture loss" in page

    out = tmp_path / "out" / "versus"
    (out / "seed-1" / "joint" / "01-joint" / "stage.json").unlink()  # as if that one had died
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*/*/*/stage.json")}
    assert len(kept) == 5
    assert (
        cli.main(["versus", recipe, *argv, "--weights", "language=1", "code=3", "--save", str(tmp_path / "x.svg")]) == 0
    )
    shown = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert "Mixture loss: language 0.25, code 0.75, as given." in shown
    assert "Equal: updates, examples and tokens" in shown
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")

    write(tmp_path, stages=stages(("6 steps", "3 steps")))
    assert cli.main(["versus", recipe, *argv]) == 2
    assert "trained as declared otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--weights", "language"], "expected domain=weight"),
        (["--weights", "tools=1"], "no domain is called 'tools'"),
        (["--lr", "high"], "integral, peak or a number"),
        (["--save", "x.pdf"], ".html or .svg"),
        (["--seeds", "1", "1"], "numbers that differ"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, capsys, argv, message):
    assert cli.main(["versus", write(tmp_path), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- stages whose collators differ ----------------------------------------------------------------------------------

CUT = {"use": "Lengths", "length": 4}
BACK = {"name": "back", "until": "2 steps", "train_dataset": "language", "data_collator": CUT}


def test_rows_of_one_joint_batch_are_collated_as_in_their_own_stages(prepared):
    ready = prepared(stages=stages(data_collator=CUT))
    arms = derived(ready, "joint", "annealed", "replay")
    for name, arm in arms.items():
        for stage in arm.recipe.stages:
            assert isinstance(stage.data_collator, BySource), name
            held = stage.data_collator.collators
            assert (held["language"], held["code"]) == (None, Lengths(4)), name
        assert "each source's rows by the collator of its stage" in arm.says
    assert [stage.data_collator.collator for stage in arms["staged"].recipe.stages] == [None, Lengths(4)]
    same = prepared(stages=stages(), data_collator=CUT)  # one for all: nothing is by source
    assert derived(same, "joint")["joint"].recipe.stages[0].data_collator is None


def test_domains_take_the_collator_of_the_stage_that_brings_them(prepared):
    first = {**stages()[0], "eval_dataset": {"prose": "language-eval"}}
    second = {**stages(data_collator=CUT)[1], "eval_dataset": {"calls": "code-eval"}}
    arms = derived(prepared(stages=[first, second], eval_dataset=None), "joint")
    held = arms["joint"].recipe.stages[0].data_collator.collators
    assert held == {"prose": None, "calls": Lengths(4), "language": None, "code": Lengths(4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages": stages(data_collator={"use": "Packed", "length": 64})},
            "'code': Packed does not make one row of each",
        ),
        (
            {"stages": [*stages(data_collator=CUT), BACK]},
            "'language' has one collator in stage 'language' and another in stage 'back'",
        ),
        (
            {"stages": stages(data_collator=CUT), "eval_dataset": {"wiki": "language-eval"}},
            "the evaluation set 'wiki' is named as no stage",
        ),
        (
            {
                "stages": [{**stages()[0], "eval_dataset": {"code": "code-eval"}}, stages(data_collator=CUT)[1]],
                "eval_dataset": {"language": "language-eval"},
            },
            "'code' has one collator as a source and another as an evaluation set",
        ),
    ],
)  # fmt: skip
def test_collators_that_cannot_meet_are_refused_where_they_would(prepared, changes, message):
    ready = prepared(**changes)
    with pytest.raises(ValueError, match=f"data_collator: differs between the stages.*{message}"):
        build_arms(ready.recipe, ready.args, ["joint"])
    only = build_arms(ready.recipe, ready.args, ["staged"])[0]  # each stage's own, as declared
    assert not any(isinstance(stage.data_collator, BySource) for stage in only.recipe.stages)


def test_both_arms_train_and_measure_with_each_sources_collator(tmp_path, capsys):
    recipe = write(tmp_path, stages=stages(data_collator=CUT))
    assert cli.main(["versus", recipe, "--seeds", "0", "--arms", "joint", "replay", "--replay", "0.25", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    runs = {name: arm["runs"][0] for name, arm in found["arms"].items()}
    # 24 rows of language of eight tokens each, 16 of code cut to four.
    assert runs["staged"]["tokens_by_source"] == runs["joint"]["tokens_by_source"] == {"language": 192, "code": 64}
    assert runs["replay"]["tokens_by_source"] == {"language": 192 + 4 * 8, "code": 12 * 4}
    assert runs["staged"]["before"] == runs["joint"]["before"]
    for name in runs:
        for path in (tmp_path / "out" / "versus" / "seed-0" / name).glob("*/stage.json"):
            domains = json.loads(path.read_text())["domains"]
            assert (domains["language"]["items"], domains["code"]["items"]) == (4 * 7, 4 * 3), path
