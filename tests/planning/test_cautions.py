"""What a plan warns of."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from transformers import TrainingArguments

from hf_stages import Recipe, Stage
from hf_stages.commands import cli
from hf_stages.core.curves import Const, Linear
from hf_stages.core.registry import part_names
from hf_stages.data import ByLength, Preferences
from hf_stages.planning.cautions import cautions
from hf_stages.planning.measure_data import plan_for
from hf_stages.planning.plan import Size, make_plan, schedule_defaults
from hf_stages.planning.stage_args import stage_args
from hf_stages.recipes import loads
from hf_stages.reports.tables.plan_table import plan_table
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.schedules.base import Defaults
from hf_stages.transforms import AddLora, Freeze
from tests.support.pages import PAGES, blocks_of
from tests.support.runs import staged

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
def test_rates_that_rise_and_missing_warmups_give_a_warning(schedule, words):
    lines = found(Stage("a", "20 steps"), Stage("b", "20 steps", schedule=schedule)).get("b", [])
    assert [words in line for line in lines] == ([True] if words else [])


def test_a_stage_that_goes_on_at_the_same_rate_needs_no_warmup():
    first = Stage("a", "20 steps", schedule=Fresh(shape=FLAT))
    assert not found(first, Stage("b", "20 steps", schedule=Fresh(warmup=0, shape=FLAT, optimizer="carry")))


@pytest.mark.parametrize(("batch", "examples", "warned"), [(8, 100, False), (7, 100, True), (7, 7, False)])
def test_small_batches_give_a_warning(batch, examples, warned):
    lines = found(Stage("a", "20 steps"), batch=batch, examples=examples).get("a", [])
    assert [line.startswith(f"{batch} examples per update: below 8") for line in lines] == [True] * warned


def test_an_adapter_has_rates_of_its_own():
    lora = AddLora(r=2, target_modules=["q_proj"])
    up = Fresh(peak=1e-2)
    assert not found(Stage("a", "20 steps"), Stage("b", "20 steps", schedule=up, transforms=[lora]))
    for same in ([], [Freeze("embed_tokens")]):
        assert "goes up" in str(found(Stage("a", "20 steps"), Stage("b", "20 steps", schedule=up, transforms=same)))


def planned(dataset, batch, **stage):
    args = TrainingArguments("unused", per_device_train_batch_size=batch, report_to=[], use_cpu=True)
    return cautions(plan_for(Recipe([Stage("a", "4 steps", train_dataset=dataset, **stage)]), args))


PAIRS = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 40


@pytest.mark.parametrize(("collator", "batch", "warned"), [
    (Preferences(), 4, False), (Preferences(), 3, True), (None, 4, True), (None, 8, False),
])  # fmt: skip
def test_a_pair_of_answers_is_two_rows(collator, batch, warned):
    """The guide to preferences halves the batch of the stage before."""
    assert bool(planned(PAIRS, batch, data_collator=collator)) == warned
    whole = Recipe([Stage("a", "4 steps")], train_dataset=PAIRS, data_collator=collator)
    args = TrainingArguments("unused", per_device_train_batch_size=batch, report_to=[], use_cpu=True)
    assert bool(cautions(plan_for(whole, args))) == warned


@pytest.mark.parametrize(("tokens", "warned"), [(64, False), (8, True), (None, True)])
def test_a_place_that_holds_several_rows_counts_as_these(tokens, warned):
    rows = [{"input_ids": [1] * 8, "labels": [1] * 8} for _ in range(200)]
    assert bool(planned(ByLength(rows, tokens=tokens), 2)) == warned


@pytest.mark.parametrize("name", part_names("recipes"))
def test_a_ready_recipe_as_it_is_printed_gives_no_warning(name, capsys):
    """With the arguments that its first line says to add."""
    assert cli.main(["recipe", name]) == 0
    printed = capsys.readouterr().out
    said = yaml.safe_load(re.search(r"args: ({.*?})", printed)[1].replace("...", "unused"))
    recipe = loads(printed)
    args = TrainingArguments(**said, report_to=[], use_cpu=True)
    assert said["warmup_steps"]
    sizes = {s.name: Size(1000, batch=8) for s in recipe.stages}
    own = {s.name: schedule_defaults(stage_args(args, s)) for s in recipe.stages}
    assert not cautions(make_plan(recipe, sizes, own))


YAML = [
    b for page in PAGES for b in blocks_of(page) if b.kind == "yaml" and re.search("^stages:", b.code, re.MULTILINE)
]


@pytest.mark.parametrize("block", YAML, ids=lambda b: f"{b.page}:{b.line}")
def test_a_recipe_of_a_guide_gives_no_warning(block):
    """Rates are judged where the block has them: README's second stage rises from a default that it does not use."""
    recipe = loads(block.code)
    given = {"learning_rate": 2e-3, **recipe.args, "output_dir": "unused", "report_to": [], "use_cpu": True}
    args = {s.name: stage_args(TrainingArguments(**given), s) for s in recipe.stages}
    sizes = {
        s.name: Size(1000, batch=args[s.name].per_device_train_batch_size, tokens_per_example=100)
        for s in recipe.stages
    }
    found = cautions(make_plan(recipe, sizes, {n: schedule_defaults(a) for n, a in args.items()}))
    assert not found


def test_warnings_stand_in_the_plan_and_the_ledger(tmp_path):
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
