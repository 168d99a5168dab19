"""The gate: what it decides; and in runs, that it holds what it promises and survives a cut by equality."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer, recipes
from hf_stages.core.curves import Const
from hf_stages.core.ledger import Entry
from hf_stages.gates import Forgetting, History
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.transforms import AddLora
from tests.support import tiny

BEFORE = {"eval_prose_loss": 2.0, "eval_code_loss": 3.0}


def history(*losses: float, entries: tuple = (), earlier: tuple = ("prose",), **more) -> History:
    """An evaluation every 10 steps; one log for each set, as Trainer writes them."""
    logs = []
    for i, loss in enumerate(losses, start=1):
        logs += [{"step": 10 * i, "eval_prose_loss": loss}, {"step": 10 * i, "eval_code_loss": 9.0}]
    return History(step=10 * len(losses), logs=logs, before=BEFORE, entries=entries, earlier=earlier, **more)


def cut(step: int, value: float | None = 0.5, kind: str = "cut_lr") -> Entry:
    return Entry(step, "code", kind, "", "Forgetting", value)


@pytest.mark.parametrize(
    ("options", "losses", "entries", "answer"),
    [
        ({}, [], (), None),
        ({}, [2.09], (), None),
        ({}, [2.2], (), "alert"),
        ({}, [2.2, 2.2], (), None),  # told once for each excursion
        ({}, [2.2, 2.0, 2.2], (), "alert"),
        ({"of": ["code"]}, [2.0], (), "alert"),
        ({"budget": 0.2}, [2.3], (), None),
        ({"patience": 2}, [2.2], (), None),
        ({"patience": 2}, [2.2, 2.2], (), "alert"),
        ({"patience": 2}, [2.2, 2.0, 2.2], (), None),
        ({"action": "end"}, [2.2], (), "end"),
        ({"action": "cut_lr"}, [2.2], (), "cut_lr"),
        ({"action": "cut_lr"}, [2.2], (cut(10),), None),  # the evaluation that was acted on
        ({"action": "cut_lr"}, [2.2, 2.2], (cut(10),), "cut_lr"),
        ({"action": "cut_lr", "patience": 2}, [2.2, 2.2], (cut(10),), None),
        ({"action": "cut_lr", "floor": 0.3}, [2.2, 2.2], (cut(10),), "alert"),
        ({"action": "cut_lr", "floor": 0.3}, [2.2, 2.2, 2.2], (cut(10), cut(20, None, "alert")), None),
        ({"action": "rollback"}, [2.05], (), "keep"),
        ({"action": "rollback"}, [2.2], (), "rollback"),
        ({"action": "rollback"}, [math.nan], (), "rollback"),
        ({"action": "rollback", "patience": 2}, [2.2], (), None),  # outside, so not kept either
    ],
)
def test_each_action_answers_beyond_its_budget_alone(options, losses, entries, answer):
    decision = Forgetting(**{"budget": "5%", **options})(history(*losses, entries=entries))
    assert (None if decision is None else decision.action) == answer
    acts = answer in ("cut_lr", "rollback")
    assert decision is None or decision.value == (0.5 if acts else None)


def test_a_rollback_at_the_floor_ends_the_stage():
    gate = Forgetting("5%", action="rollback", floor=0.3)
    decision = gate(history(2.2, 2.2, entries=(cut(10, kind="rollback"),)))
    assert (decision.action, decision.value) == ("rollback", None)
    assert "so the stage ends here" in decision.reason


def test_says_which_domain_and_how_much():
    decision = Forgetting("5%")(history(2.2, earlier=("prose", "code")))
    assert decision.reason == "code: loss 9 is 200 % above 3 at the boundary (budget 5 %)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "much"}, "budget: expected a share"),
        ({"budget": 5}, "budget: expected a share"),
        ({"budget": -0.1}, "budget: expected a share"),
        ({"of": []}, "of: expected names"),
        ({"action": "pray"}, "expected one of alert, cut_lr, rollback, replay, end, got 'pray'"),
        ({"factor": 1.5}, "factor: expected a number between 0 and 1"),
        ({"floor": 1}, "floor: expected at least 0"),
        ({"patience": 0}, "patience: expected at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Forgetting(**options)


def test_reads_and_writes_as_yaml():
    text = "stages: [{name: a, until: 1 steps, gates: [{use: Forgetting, budget: 5 %, of: [x], action: cut_lr}]}]"
    gate = recipes.loads(text)["a"].gates[0]
    assert gate == Forgetting(0.05, of=("x",), action="cut_lr")
    assert recipes.loads(recipes.dump(recipes.loads(text)))["a"].gates[0] == gate


# ---- runs: two domains that want other answers to the same question ------------------------------------------------


def steps_of(stride: int, seed: int) -> Dataset:
    """Each token is the one before plus ``stride``: of two strides one must be forgotten, or told by the context."""
    starts = torch.randint(0, 60, (48,), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [[3 + (start + stride * i) % 60 for i in range(12)] for start in starts]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


PEAK = 4e-3
DOMAINS = {"prose": steps_of(1, 0), "code": steps_of(7, 1)}


class Cut(TrainerCallback):
    def __init__(self, after: int) -> None:
        self.left = after

    def on_step_begin(self, args, state, control, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def run(
    out, *gates, seed=0, cut=None, resume=False, code=None, more=(), own=None, transforms=(), **args
) -> StagedTrainer:
    given = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 4, "logging_steps": 1, **args}
    stages = [
        Stage(
            "prose", "16 steps", train_dataset=DOMAINS["prose"], args={"eval_strategy": "no"}, schedule=Fresh(peak=1e-2)
        ),
        Stage(
            "code",
            "16 steps",
            train_dataset=DOMAINS["code"],
            gates=gates,
            transforms=transforms,
            args=own or {},
            schedule=code or Fresh(peak=PEAK, shape=Const(1)),
        ),
        *more,
    ]
    trainer = StagedTrainer(
        tiny.llama(seed=seed, initializer_range=0.1),
        TrainingArguments(
            str(out),
            seed=seed,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=16,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **given,
        ),
        stages=stages,
        eval_dataset={name: data.select(range(16)) for name, data in DOMAINS.items()},
        callbacks=[Cut(cut)] if cut is not None else [],
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        assert cut is not None
    return trainer


def stage(out, folder: str = "02-code") -> dict:
    return json.loads((out / folder / "stage.json").read_text())


def rise(out, folder: str = "02-code") -> float:
    before, after = stage(out, "01-prose"), stage(out, folder)
    return after["domains"]["prose"]["loss"] / before["domains"]["prose"]["loss"] - 1


def acts(out, folder: str = "02-code") -> list[tuple]:
    entries = [e for e in stage(out, folder)["ledger"] if e["by"] == "Forgetting"]
    return [(e["step"], e["kind"], e.get("value")) for e in entries]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_rollback_holds_the_budget_where_the_run_without_exceeds_it(tmp_path, seed):
    run(tmp_path / "free", Forgetting("20%"), seed=seed, save_strategy="no")
    run(tmp_path / "held", Forgetting("20%", action="rollback"), seed=seed, save_strategy="no")
    assert rise(tmp_path / "free") > 0.5
    assert [kind for _, kind, _ in acts(tmp_path / "free")][:1] == ["alert"]
    assert rise(tmp_path / "held") <= 0.2
    assert "rollback" in [kind for _, kind, _ in acts(tmp_path / "held")]
    learned = stage(tmp_path / "held")
    assert learned["domains"]["code"]["loss"] < learned["domains_start"]["code"]["loss"]  # and learned something
    assert not list((tmp_path / "held").glob("*.kept"))


def test_a_budget_at_the_end_holds_without_an_evaluation_before(tmp_path):
    """No evaluation falls into the stage: the folder is then what the stage started from."""
    run(tmp_path, Forgetting("5%", action="rollback"), eval_steps=500, save_strategy="no")
    assert rise(tmp_path) == pytest.approx(0, abs=1e-9)
    assert acts(tmp_path) == [(32, "rollback", None)]


def test_cut_rates_are_those_of_schedule_and_ledger(tmp_path):
    trainer = run(tmp_path, Forgetting("20%", action="cut_lr", floor=0.2), save_strategy="no")
    cuts = [step for step, kind, _ in acts(tmp_path) if kind == "cut_lr"]
    assert len(cuts) == 2  # 0.5, 0.25; the next would be below the floor
    rates = {log["step"]: log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log}
    # A log after update k has the rate of update k + 1; a cut at k came after that log.
    expected = {k: PEAK * 0.5 ** sum(c < k for c in cuts) for k in range(17, 33)}
    assert {k: rates[k] for k in expected} == pytest.approx(expected)
    assert stage(tmp_path)["lr_end"] == pytest.approx(PEAK / 4)


def test_later_stages_go_on_from_the_cut_rate(tmp_path):
    more = [
        Stage("on", "2 steps", schedule=Resume(), train_dataset=DOMAINS["code"]),
        Stage(
            "again",
            "2 steps",
            schedule=Rewarm(to=PEAK / 2, warmup="2 steps"),
            train_dataset=DOMAINS["code"],
            parents="code",
        ),
    ]
    code = Fresh(peak=PEAK, shape=Const(1))
    trainer = run(tmp_path, Forgetting("20%", action="cut_lr", floor=0.4), code=code, more=more, save_strategy="no")
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log and log["stage"] > 2]
    assert stage(tmp_path)["lr_end"] == pytest.approx(PEAK / 2)
    assert rates == pytest.approx([PEAK / 2] * 4)


def test_end_ends_the_stage_and_a_wide_budget_does_nothing(tmp_path):
    run(tmp_path / "end", Forgetting("20%", action="end"), save_strategy="no")
    assert stage(tmp_path / "end")["ended_by"] == "Forgetting"
    run(tmp_path / "wide", Forgetting("99%", of=["code"], action="cut_lr"), save_strategy="no")
    assert acts(tmp_path / "wide") == []


def test_patience_waits_for_evaluations_in_a_row(tmp_path):
    run(tmp_path, Forgetting("20%", action="end", patience=3), save_strategy="no")
    assert stage(tmp_path)["steps"] >= 9


GATES = {
    "cut": Forgetting("20%", action="cut_lr", patience=2),
    "rollback": Forgetting("20%", action="rollback", factor=0.7),
    "at-the-floor": Forgetting("10%", action="rollback", factor=0.5, floor=0.3),
}


def same(a, b, left: StagedTrainer, right: StagedTrainer) -> None:
    timed = ("runtime", "per_second")
    first, second = ({**stage(out), "seconds": 0} for out in (a, b))
    for summary in (first, second):
        summary["metrics"] = {k: v for k, v in summary["metrics"].items() if not k.endswith(timed)}
    assert {k: first[k] for k in ("ledger", "metrics", "steps", "lr_end", "domains")} == {
        k: second[k] for k in ("ledger", "metrics", "steps", "lr_end", "domains")
    }
    logs = [
        [{k: v for k, v in log.items() if not k.endswith(timed)} for log in t.state.log_history] for t in (left, right)
    ]
    logs = [[{k: v for k, v in log.items() if k not in ("total_flos",)} for log in side] for side in logs]
    assert logs[0] == logs[1]
    weights = [t.model.state_dict() for t in (left, right)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "rollback")) for name in GATES]
)
def test_cut_and_resumed_is_never_cut(tmp_path, name):
    """Cuts before, at and after decisions; checkpoints fall on other steps than evaluations."""
    gate = GATES[name]
    whole = run(tmp_path / "whole", gate, save_total_limit=2)
    assert len(acts(tmp_path / "whole")) >= 2
    decided = acts(tmp_path / "whole")[0][0]
    for place, after in enumerate((decided, decided + 2)):
        out = tmp_path / str(place)
        run(out, gate, cut=after, save_total_limit=2)
        run(out, gate, cut=5, resume=True, save_total_limit=2)
        again = run(out, gate, resume=True, save_total_limit=2)
        same(tmp_path / "whole", out, whole, again)


def test_rollback_under_lora_goes_back_to_the_adapter(tmp_path):
    lora = AddLora(r=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    run(
        tmp_path, Forgetting("30%", action="rollback"), transforms=[lora],
        code=Fresh(peak=3e-2, shape=Const(1)), save_strategy="no",
    )  # fmt: skip
    assert "rollback" in [kind for _, kind, _ in acts(tmp_path)]
    assert rise(tmp_path) <= 0.3


def test_a_lost_state_is_named(tmp_path):
    import shutil

    run(tmp_path / "whole", GATES["rollback"], save_strategy="no")
    decided = acts(tmp_path / "whole")[0][0]
    run(tmp_path, GATES["rollback"], cut=decided - 1, save_steps=1)
    for folder in tmp_path.glob("*.kept"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"02-code.kept.*the stage cannot go back to it"):
        run(tmp_path, GATES["rollback"], resume=True, save_steps=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eval_strategy": "no"}, r'gates\[0\] Forgetting: it is asked after evaluations, but eval_strategy is "no"'),
        ({"gate": Forgetting(of=["poems"])}, "no evaluation set is called 'poems'; there are prose, code"),
        (
            {"gate": Forgetting(action="rollback"), "own": {"load_best_model_at_end": True, "save_steps": 3}},
            "'rollback' and load_best_model_at_end both choose",
        ),
    ],
)
def test_refused_before_the_first_step(tmp_path, options, words):
    gate = options.pop("gate", Forgetting())
    with pytest.raises(ValueError, match=words):
        run(tmp_path, gate, **options)


def test_domains_that_no_stage_is_named_after(tmp_path):
    args = TrainingArguments(str(tmp_path), eval_strategy="steps", eval_steps=1, use_cpu=True, report_to=[])
    data = tiny.lm_data()
    given = {"train_dataset": data, "stages": [Stage("a", "1 steps"), Stage("b", "1 steps", gates=[Forgetting()])]}
    with pytest.raises(ValueError, match=r"no evaluation set \(x\) is named as an earlier stage"):
        StagedTrainer(tiny.llama(), args, eval_dataset={"x": data}, **given).plan()
    with pytest.raises(ValueError, match=r"eval_dataset: expected named sets"):
        StagedTrainer(tiny.llama(), args, eval_dataset=data, **given).plan()
