"""What a plan warns of."""

from __future__ import annotations

import json

import pytest

from hf_stages import Recipe, Stage
from hf_stages.cautions import cautions
from hf_stages.curves import Const, Linear
from hf_stages.plan import Size, make_plan
from hf_stages.reports.plan_table import plan_table
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.schedules._span import Defaults
from tests.test_trainer import staged

FLAT = Const(1)


def found(*stages: Stage, batch: int = 8, examples: int = 100, warmup: float = 2) -> dict[str, list[str]]:
    sizes = {stage.name: Size(examples, batch=batch) for stage in stages}
    return cautions(make_plan(Recipe(stages), sizes, {s.name: Defaults(1e-3, warmup=warmup) for s in stages}))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (None, None),
        (Fresh(peak=1e-3), None),
        (Fresh(peak=2e-3), "goes up to 0.002, above the 0.001 of 'a'"),
        (Rewarm(to=2e-3), "goes up to 0.002"),
        (Rewarm(to=1e-3), None),
        (Resume(), None),
        (Fresh(warmup=0), "no warmup: its first update is made at 0.001 with an optimizer that starts empty"),
        (Fresh(warmup=0, shape=FLAT, optimizer="carry"), "no warmup: its first update is made at 0.001 after the 0"),
        (Fresh(warmup=0, shape=Linear(0, 1)), None),  # rises by itself
        (Rewarm(to=5e-4, warmup=0, optimizer="reset"), "no warmup"),
    ],
)
def test_rates(schedule, words):
    lines = found(Stage("a", "20 steps"), Stage("b", "20 steps", schedule=schedule)).get("b", [])
    assert [words in line for line in lines] == ([True] if words else [])


def test_what_goes_on_at_the_same_rate_needs_no_warmup():
    first = Stage("a", "20 steps", schedule=Fresh(shape=FLAT))
    assert not found(first, Stage("b", "20 steps", schedule=Fresh(warmup=0, shape=FLAT, optimizer="carry")))


@pytest.mark.parametrize(("batch", "examples", "warned"), [(8, 100, False), (7, 100, True), (7, 7, False)])
def test_small_batches(batch, examples, warned):
    lines = found(Stage("a", "20 steps"), batch=batch, examples=examples).get("a", [])
    assert [line.startswith(f"{batch} examples per update: below 8") for line in lines] == [True] * warned


def test_the_plan_and_the_ledger_say_so(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "1 steps"), Stage("b", "1 steps", schedule=Fresh(peak=2e-3))])
    table = " ".join(plan_table(trainer.plan()).split())
    assert "b: its learning rate goes up to 0.002, above the 0.001 of 'a' before it" in table
    trainer.train()
    ledger = json.loads((tmp_path / "run.json").read_text())["ledger"]
    notices = [entry for entry in ledger if entry["by"] == "plan"]
    assert [(e["stage"], e["kind"], e["reason"][:24]) for e in notices] == [
        ("a", "notice", "4 examples per update: b"),
        ("b", "notice", "its learning rate goes u"),
        ("b", "notice", "no warmup: its first upd"),
        ("b", "notice", "4 examples per update: b"),
    ]
