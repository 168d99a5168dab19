"""What a person at a console reads: of a run, of one that is resumed, of ``dir`` and ``help``."""

from __future__ import annotations

import inspect
import json
import logging
import pydoc

import pytest
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedMixin, StagedTrainer
from hf_stages.gates import Forgetting
from tests.support import tiny

SETS = {name: tiny.lm_data(8, 12, seed=seed) for seed, name in enumerate(("language", "code", "tools"))}


def trainer_in(out, stages=None, *, cls=StagedTrainer, quiet=True, **given):
    more = {key: given.pop(key) for key in ("learning_rate", "save_strategy", "save_steps") if key in given}
    args = TrainingArguments(
        str(out), per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=quiet, logging_steps=2,
        eval_strategy="steps", eval_steps=2, **{"save_strategy": "no", **more},
    )  # fmt: skip
    stages = stages if stages is not None else [Stage("prose", "2 steps"), Stage("code", "2 steps")]
    given = {"train_dataset": SETS["language"], "eval_dataset": SETS, **given}
    return cls(tiny.llama(), args, stages=stages, **given)


@pytest.fixture
def warned(monkeypatch):
    """What the package's loggers said."""
    said = []
    for name in ("stage.gate_actions", "stage.decisions", "manifest", "runner"):
        logger = logging.getLogger(f"hf_stages.training.{name}")
        monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text))
    return said


def test_an_evaluation_is_a_line_for_each_set(tmp_path, capfd):
    trainer_in(tmp_path, quiet=False).train()
    shown = capfd.readouterr()
    lines = shown.out.splitlines() + shown.err.replace("\r", "\n").splitlines()
    told = [line for line in lines if line.strip().startswith("step ")]
    assert [line.strip().partition(": loss")[0] for line in told] == [
        f"step {step}: {what} {name}"
        for step, what in ((0, "start"), (2, "eval"), (2, "start"), (4, "eval"))
        for name in SETS
    ]
    assert not any("_per_second" in line and "eval" in line for line in lines)
    assert "Writing model shards" not in shown.err
    assert not any("/1 [" in line for line in lines)  # the bars of evaluations, which only a terminal can take back


def test_a_finished_run_has_nothing_left_to_do(tmp_path, warned):
    trainer_in(tmp_path).train()
    trainer_in(tmp_path).train(resume_from_checkpoint=True)
    assert [line for line in warned if "nothing left to do" in line] == [
        f"{tmp_path}: every stage is done, nothing left to do"
    ]
    assert not any("resuming" in line for line in warned)


@pytest.mark.parametrize("ends", [False, True])
def test_the_last_words_of_a_rollback_say_where_it_went(ends, tmp_path, warned):
    gate = Forgetting("1%", action="rollback", of=["language"], **({"floor": 0.9} if ends else {}))
    stages = [Stage("language", "12 steps"), Stage("code", "6 steps", train_dataset=SETS["code"], gates=[gate])]
    trainer_in(tmp_path, stages, learning_rate=3e-2).train()
    said = [line for line in warned if "budget" in line]
    assert said
    assert all(line.endswith("; went back to the start of the stage") for line in said)
    summary = json.loads((tmp_path / "02-code" / "stage.json").read_text())
    if ends:
        assert summary["ended_by"] == "Forgetting"
        assert summary["ended_because"].endswith("; went back to the start of the stage")


class Cut(TrainerCallback):
    def __init__(self, step, *, crash):
        self.step, self.crash = step, crash

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.crash:
            raise RuntimeError("cut")
        control.should_training_stop = control.should_training_stop or state.global_step == self.step
        return control


@pytest.mark.parametrize(("crash", "far"), [(False, "1 of 2"), (True, "0 of 2")])
def test_a_cut_run_shows_the_stage_that_is_half_done(crash, far, tmp_path):
    from hf_stages.reports.tables.result_table import result_table

    trainer = trainer_in(tmp_path, callbacks=[Cut(3, crash=crash)], save_strategy="steps", save_steps=500)
    if crash:
        with pytest.raises(RuntimeError, match="cut"):
            trainer.train()
    else:
        trainer.train()
    line = result_table(tmp_path).splitlines()[3]
    assert far in line
    assert ("half done" in line, "cut, not saved" in line) == (not crash, crash)


def test_a_plan_is_printed_as_a_table(tmp_path):
    shown = str(trainer_in(tmp_path).plan())
    assert shown.splitlines()[0].split()[:2] == ["stage", "steps"]
    assert "1 prose" in shown
    assert "params" in shown
    assert "Plan(" in repr(trainer_in(tmp_path).plan())


class Own(StagedTrainer):
    def __init__(self, model, out):
        super().__init__(model, TrainingArguments(out))


class Deeper(StagedTrainer):
    pass


class StagedSeq2Seq(StagedMixin, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize(
    ("cls", "below"), [(StagedTrainer, Trainer), (Deeper, Trainer), (StagedSeq2Seq, Seq2SeqTrainer)]
)
def test_help_shows_the_arguments(cls, below):
    shown = list(inspect.signature(cls).parameters)
    assert shown == [*inspect.signature(below).parameters, "stages", "recipe", "teacher", "notify"]


def test_a_subclass_with_arguments_of_its_own_shows_those():
    assert list(inspect.signature(Own).parameters) == ["model", "out"]
    text = pydoc.render_doc(StagedTrainer, renderer=pydoc.plaintext)
    assert "Stage(" in text
    assert "Args:" in text
    assert "print(trainer.plan())" in text
