from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments, get_scheduler

from hf_stages import Recipe, Stage
from hf_stages.core.curves import Cosine
from hf_stages.core.duration import Duration
from hf_stages.planning.plan import Size, make_plan, steps_of
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.schedules.base import Defaults

lengths = st.integers(1, 400)
small = st.integers(1, 7)
sizes = st.builds(
    Size,
    examples=st.integers(1, 300) | st.none(),
    batch=small,
    accumulation=small,
    world=st.integers(1, 4),
    drop_last=st.booleans(),
    tokens_per_example=st.floats(1, 3000),
)
rates = st.floats(1e-6, 1e-1)


def durations(size: Size):
    units = st.sampled_from(["steps", "tokens", *(["epochs"] if size.examples is not None else [])])
    return st.builds(Duration, st.floats(1e-3, 1e6), units)


def plan_of(stages, defaults=None):
    defaults = defaults or Defaults(1e-3)
    return make_plan(Recipe(stages), {s.name: Size(100, 4) for s in stages}, {s.name: defaults for s in stages})


@given(st.data(), sizes)
def test_no_stage_has_zero_steps(data, size):
    until = data.draw(durations(size))
    if size.examples is not None and not size.updates_per_epoch:
        with pytest.raises(ValueError, match="no batch of"):
            steps_of(Stage("a", until), size)
    else:
        assert steps_of(Stage("a", until), size) >= 1


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    args = TrainingArguments(str(tmp_path_factory.mktemp("out")), use_cpu=True, report_to=[])
    return Trainer(torch.nn.Linear(1, 1), args, train_dataset=Dataset.from_dict({"x": [0.0]}))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), small, small, st.booleans(), st.floats(0.05, 4))
def test_epochs_are_what_trainer_computes(trainer, examples, batch, accumulation, drop_last, epochs):
    size = Size(examples, batch, accumulation, drop_last=drop_last)
    assume(size.updates_per_epoch)
    trainer.args.gradient_accumulation_steps, trainer.args.num_train_epochs = accumulation, epochs
    loader = torch.utils.data.DataLoader([{"x": 0.0}] * examples, batch_size=batch, drop_last=drop_last)
    _, updates, *_, batches, steps = trainer.set_initial_training_values(trainer.args, loader)
    assert (size.batches_per_epoch, size.updates_per_epoch) == (batches, updates)
    assert steps_of(Stage("a", Duration(epochs, "epochs")), size) == steps


@given(st.integers(1, 10**7), small, small, st.integers(1, 8), st.integers(1, 4096))
def test_a_token_budget_takes_the_fewest_updates_that_reach_it(budget, batch, accumulation, world, length):
    size = Size(None, batch, accumulation, world, tokens_per_example=length)
    steps = steps_of(Stage("a", Duration(budget, "tokens")), size)
    assert steps * size.global_batch * length >= budget > (steps - 1) * size.global_batch * length


@given(st.integers(1, 10**6), small, small, st.integers(1, 30), st.integers(1, 512))
def test_a_token_budget_over_sized_data_counts_small_last_updates(budget, batch, accumulation, updates, length):
    size = Size(batch * accumulation * updates, batch, accumulation, tokens_per_example=length)
    steps = steps_of(Stage("a", Duration(budget, "tokens")), size)
    assert abs(steps - math.ceil(budget / (size.global_batch * length))) <= (budget % (size.global_batch * length) == 0)


@settings(deadline=None)
@given(st.lists(lengths, min_size=2, max_size=5), st.sampled_from(["linear", "cosine", "constant"]), rates)
def test_resume_goes_on_where_the_parent_ended(steps, shape, lr):
    stages = [Stage(f"s{i}", f"{n} steps", schedule=Resume() if i else None) for i, n in enumerate(steps)]
    plan = plan_of(stages, Defaults(lr, warmup=min(3, steps[0]), shape=shape))
    whole = plan_of([Stage("one", f"{sum(steps)} steps")], Defaults(lr, warmup=min(3, steps[0]), shape=shape))
    done = 0
    for before, after in zip(plan.stages, plan.stages[1:], strict=False):
        assert before.lr_out == after.lr_in
    for planned in plan.stages:
        for t in (0.0, 0.5, 1.0):
            at = (done + t * planned.steps) / sum(steps)
            assert plan.lr_at(planned.name, t) == pytest.approx(whole.lr_at("one", at), rel=1e-6, abs=1e-15)
        done += planned.steps
    assert plan.stages[-1].s1 == plan.spans["s0"].total  # the shape ends where the last stage ends
    assert plan.stages[-1].lr_out == (lr if shape == "constant" else pytest.approx(0, abs=1e-12))


@given(lengths, lengths, lengths)
def test_branches_that_resume_share_the_longest_chains_span(first, left, right):
    stages = [
        Stage("a", f"{first} steps"),
        Stage("b", f"{left} steps", schedule=Resume()),
        Stage("c", f"{right} steps", parents="a", schedule=Resume()),
    ]
    plan = plan_of(stages)
    assert plan["b"].lr_in == plan["c"].lr_in == plan["a"].lr_out
    assert plan.spans["a"].total == first + max(left, right)
    longest = "b" if left >= right else "c"
    assert plan[longest].lr_out == pytest.approx(0, abs=1e-12)


@settings(deadline=None)
@given(lengths, st.integers(2, 400), rates, rates, st.sampled_from(["linear", "cosine", Cosine(1, 0.1)]))
def test_rewarm_starts_at_the_parents_last_rate_and_reaches_its_own(first, steps, lr, to, then):
    warmup = steps // 2
    stages = [
        Stage("a", f"{first} steps", schedule=Fresh(shape=Cosine(1, 0.3))),
        Stage("b", f"{steps} steps", schedule=Rewarm(to, warmup=warmup, then=then)),
    ]
    plan = plan_of(stages, Defaults(lr))
    assert plan["b"].lr_in == pytest.approx(plan["a"].lr_out)
    assert plan.spans["b"].lr(warmup) == pytest.approx(to)
    assert plan["b"].lr_out == pytest.approx(0.1 * to if isinstance(then, Cosine) else 0, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 60),
    st.floats(0, 1),
    st.sampled_from(
        [
            *[(name, {}) for name in ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt")],
            ("polynomial", {"lr_end": 1e-5, "power": 2.0}),
            ("cosine_with_min_lr", {"min_lr": 1e-4}),
        ]
    ),
)
def test_fresh_equals_transformers_at_every_step(steps, share, kind):
    (shape, kwargs), lr, warmup = kind, 1e-3, int(share * steps)
    assume(shape != "polynomial" or warmup < steps)  # transformers divides by zero there
    plan = plan_of([Stage("a", f"{steps} steps")], Defaults(lr, warmup=warmup, shape=shape, shape_kwargs=kwargs))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    options = {"num_warmup_steps": warmup, "num_training_steps": steps, "scheduler_specific_kwargs": kwargs}
    scheduler = get_scheduler(shape, optimizer, **options)
    for step in range(steps + 1):
        assert plan.spans["a"].lr(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        assert plan.lr_at("a", step / steps) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6, abs=1e-12)
        optimizer.step()
        scheduler.step()


@given(st.lists(lengths, min_size=1, max_size=6))
def test_stages_lie_end_to_end(steps):
    plan = plan_of([Stage(f"s{i}", f"{n} steps") for i, n in enumerate(steps)])
    assert [p.first_step for p in plan.stages] == [sum(steps[:i]) for i in range(len(steps))]
    assert plan.total_steps == sum(steps)
    assert [p.folder for p in plan.stages] == [f"{i:02d}-s{i - 1}" for i in range(1, len(steps) + 1)]


@pytest.mark.parametrize(
    ("stage", "size", "message"),
    [
        (Stage("a", "2 epochs"), Size(None, 4), "on a stream without a length"),
        (Stage("a", "1k tokens"), Size(10, 4), "no input_ids to count"),
        (Stage("a", "5 steps"), Size(3, 4, drop_last=True), "no batch of 4"),
        (Stage("a", "5 steps", schedule=Resume()), Size(10, 4), "needs a parent"),
        (Stage("a", "5 steps", schedule=Fresh(warmup=6)), Size(10, 4), "a warmup of 6 steps is longer"),
    ],
)
def test_refuses_what_cannot_run(stage, size, message):
    with pytest.raises(ValueError, match=f"stage 'a': .*{message}"):
        make_plan(Recipe([stage]), {"a": size}, {"a": Defaults(1e-3)})
