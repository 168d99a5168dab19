"""BySource: each source's rows as its own collator makes them, in the rows' order, padded to the widest."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from hf_stages import Stage, StagedTrainer
from hf_stages.core.batch import SOURCE
from hf_stages.core.curves import Linear
from hf_stages.core.stops import RunInterrupted
from hf_stages.data import BySource, CompletionOnly, DynamicMLM, Lengths, Mixture, Packed, Preferences
from hf_stages.data.collators import by_source as module
from hf_stages.data.source_column import SourceCollator
from hf_stages.data.stage_collator import for_source
from hf_stages.recipes import dump, loads
from tests.support import tiny
from tests.workers.cases import arguments

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif "
    "%}"
)


def text(source, *ids):
    return {"source": source, "input_ids": list(ids)}


def talk(source, words):
    return {
        "source": source,
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": words}],
    }


def bare(row):
    return {key: value for key, value in row.items() if key != "source"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_is_what_its_own_collator_makes_of_it(side):
    tokenizer = tiny.tokenizer(TEMPLATE, padding_side=side)
    tokenizer.pad_token = "</s>" if tokenizer.pad_token is None else tokenizer.pad_token
    parts = {"lm": DataCollatorForLanguageModeling(tokenizer, mlm=False), "talk": CompletionOnly().build(tokenizer)}
    rows = [text("lm", 5, 6, 7), talk("talk", "hello there"), text("lm", 8), talk("talk", "no"), text("lm", 9, 10)]
    batch = BySource(parts).build(tokenizer)(rows)
    width = batch["input_ids"].shape[1]
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    for i, row in enumerate(rows):
        alone = parts[row["source"]]([bare(row)])
        count = alone["input_ids"].shape[1]
        more = width - count
        own = slice(more, None) if side == "left" else slice(0, count)
        rest = slice(0, more) if side == "left" else slice(count, None)
        for key, fill in (("input_ids", tokenizer.pad_token_id), ("attention_mask", 0), ("labels", -100)):
            assert torch.equal(batch[key][i, own], alone[key][0]), (i, key)
            assert batch[key][i, rest].eq(fill).all(), (i, key)
    assert width == max(parts[row["source"]]([bare(row)])["input_ids"].shape[1] for row in rows)
    # A batch of one source is that collator's own.
    some = [rows[0], rows[2]]
    assert all(torch.equal(v, parts["lm"](list(map(bare, some)))[k]) for k, v in BySource(parts)(some).items())


def test_other_rows_and_rows_without_a_source_take_the_collator():
    rows = [text("a", 1, 2, 3), text("b", 4, 5, 6), {"input_ids": [7, 8, 9]}]
    cut = BySource({"a": Lengths(1)}, Lengths(2))
    assert cut(rows)["input_ids"].tolist() == [[1, 0], [4, 5], [7, 8]]
    assert BySource({"a": Lengths(1)})(rows)["attention_mask"].sum(1).tolist() == [1, 3, 3]
    assert cut.for_source("a")(rows)["attention_mask"].sum(1).tolist() == [1, 1, 1]
    assert cut.for_source("unknown") == cut
    around = for_source(SourceCollator(Lengths(9, cut), ("a", "b")), "a")
    assert around.inner.collator.collator == Lengths(1)
    assert module._SOURCE == SOURCE


def test_curves_and_draws_reach_each_collator():
    tokenizer = tiny.tokenizer(mask_token="<mask>")
    both = BySource({"a": Lengths(Linear(1, 5)), "b": DynamicMLM(0.5)}).build(tokenizer)
    rows = [text("a", *range(10, 16))]
    assert [both.at(t)(rows)["input_ids"].shape[1] for t in (0.0, 0.5, 1.0, None)] == [1, 3, 5, 5]
    masked = both.at(None)([text("b", *range(10, 30))] * 2)  # in evaluation, by the tokens alone
    assert torch.equal(masked["labels"][0], both.at(None)([text("b", *range(10, 30))] * 2)["labels"][0])
    assert both.collators["b"].fixed is False


def test_position_ids_and_one_label_for_each_row():
    def positions(rows):
        made = Lengths(9)(rows)
        return {**made, "position_ids": made["attention_mask"].cumsum(1) - 1, "labels": torch.tensor([3] * len(rows))}

    batch = BySource({"a": positions}, positions)([text("b", 5), text("a", 6, 7)])
    assert batch["position_ids"].tolist() == [[0, 0], [0, 1]]
    assert batch["labels"].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("collators", "message"),
    [
        ({"a": Packed(8)}, r"'a': Packed does not make one row of each; put it around: Packed\(..., BySource"),
        ({"a": Lengths(8, longer="split")}, "longer='split'"),
        ({"a": CompletionOnly(Packed(8))}, "Packed does not"),
        ({"a": Preferences()}, "two rows of each"),
        ({"a": "Lengths"}, "'a': expected a collator, got 'Lengths'"),
        ({}, "collators: expected collators by source"),
        ([Lengths(3)], "collators: expected collators by source"),
    ],
)
def test_what_cannot_stand_in_one_batch_is_refused_when_declared(collators, message):
    with pytest.raises(ValueError, match=message):
        BySource(collators)


def _mask4(rows):
    return {**Lengths(9)(rows), "attention_mask": torch.ones(len(rows), 1, 3, 3)}


@pytest.mark.parametrize(
    ("collator", "message"),
    [
        (lambda rows: Lengths(1, longer="split")(rows), "'a': its collator makes 3 rows of 1"),
        (_mask4, r"attention_mask: expected one of \(rows, tokens\)"),
        (lambda rows: {"pixels": torch.ones(1, 3)}, "expected a collator that gives input_ids"),
        (lambda rows: {**Lengths(9)(rows), "names": ["x"]}, "names: expected a tensor with an entry for each row"),
        (lambda rows: {**Lengths(9)(rows), "labels": torch.ones(1)}, "labels: made of rows of 'a' and not of"),
        (lambda rows: {**Lengths(9)(rows), "extra": torch.ones(1, 7)}, "extra: made of rows of 'a'"),
    ],
)
def test_shapes_that_do_not_fit_are_named(collator, message):
    with pytest.raises(ValueError, match=message):
        BySource({"a": collator})([text("b", 1, 2), text("a", 1, 2, 3)])


def test_a_recipe_reads_and_writes_it():
    held = loads(
        "model: {config: {model_type: llama}}\n"
        "sources: {a: {path: json, data_files: a.jsonl}, b: {path: json, data_files: b.jsonl}}\n"
        "stages:\n- name: one\n  until: 2 steps\n  train_dataset: {use: Mixture, weights: {a: 1, b: 1}}\n"
        "  data_collator:\n    use: BySource\n    collators:\n      a: {use: Lengths, length: 'Linear(1, 5)'}\n"
        "      b: {use: DataCollatorForLanguageModeling, mlm: false}\n      c: CompletionOnly\n      d: null\n"
    )
    collator = held.stages[0].data_collator
    assert collator.collators["a"] == Lengths(Linear(1, 5))
    assert (collator.collators["b"].use, collator.collators["c"], collator.collators["d"]) == (
        "DataCollatorForLanguageModeling", CompletionOnly(), None,
    )  # fmt: skip
    assert loads(dump(held)).stages[0].data_collator == collator
    with pytest.raises(ValueError, match=r"collators.b.*unknown part 'Length'"):
        loads(dump(held).replace("use: DataCollatorForLanguageModeling", "use: Length").replace("mlm: false", ""))


# ---- in a run ------------------------------------------------------------------------------------------------------

A = Dataset.from_dict({"input_ids": [[i % 40 + 3] * 6 for i in range(12)]}).map(lambda r: {"labels": r["input_ids"]})
B = Dataset.from_dict({"input_ids": [[i % 20 + 50] * 9 for i in range(12)]}).map(lambda r: {"labels": r["input_ids"]})


class Seen(StagedTrainer):
    """Notes what the model is given."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("trained", []).append({k: v.clone() for k, v in inputs.items()})
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("measured", []).append({k: v.clone() for k, v in inputs.items()})
        return super().prediction_step(model, inputs, *args, **kwargs)


def run(out, stages, **changes):
    given = {
        "train_dataset": {"a": A, "b": B}, "eval_dataset": {"a": A.select(range(2)), "b": B.select(range(2))},
        "data_collator": BySource({"a": Lengths(2), "b": Lengths(5)}),
    }  # fmt: skip
    return Seen(tiny.llama(), arguments(out, per_device_train_batch_size=4), stages=stages, **{**given, **changes})


def widths(batch):
    """Tokens of each row by the source that its tokens tell."""
    found = {}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        found.setdefault("a" if ids[0] < 50 else "b", set()).add(int(mask.sum()))
    return found


def test_mixtures_single_sources_and_evaluation_sets_by_name(tmp_path):
    stages = [Stage("one", "2 steps", train_dataset="b"), Stage("two", "3 steps", train_dataset=Mixture(["a", "b"]))]
    trainer = run(tmp_path, stages)
    trainer.train()
    assert [widths(batch) for batch in trainer.trained[:2]] == [{"b": {5}}] * 2
    assert [widths(batch) for batch in trainer.trained[2:]] == [{"a": {2}, "b": {5}}] * 3
    assert all(
        batch.keys() == {"input_ids", "attention_mask", "labels"} for batch in trainer.trained + trainer.measured
    )
    seen = [widths(batch) for batch in trainer.measured]
    assert {"a": {2}} in seen
    assert {"b": {5}} in seen
    assert all(found in ({"a": {2}}, {"b": {5}}) for found in seen)


def test_a_name_that_no_source_has_is_refused_before_the_first_step(tmp_path):
    stages = [Stage("one", "2 steps", train_dataset=Mixture(["a", "b"]), data_collator=BySource({"tools": Lengths(3)}))]
    with pytest.raises(
        ValueError, match="stage 'one': data_collator: BySource: no source is called 'tools'; there are a, b"
    ):
        run(tmp_path, stages).plan()


def test_packed_around_it(tmp_path):
    around = Packed(16, BySource({"a": Lengths(2), "b": Lengths(5)}))
    trainer = run(tmp_path, [Stage("one", "2 steps", train_dataset=Mixture(["a", "b"]), data_collator=around)])
    trainer.train()
    tokens = [int(batch["labels"].ne(-100).sum()) for batch in trainer.trained]
    assert all(batch["input_ids"].shape[0] < 4 for batch in trainer.trained)
    assert tokens == [2 * 1 + 2 * 4] * 2  # of two rows of each source, without their first tokens


def test_padding_collators_of_transformers():
    tokenizer = tiny.tokenizer()
    both = BySource({"a": DataCollatorWithPadding(tokenizer)}, DataCollatorWithPadding(tokenizer, pad_to_multiple_of=4))
    batch = both.build(tokenizer)([text("a", 5), text("b", 6, 7)])
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_cut_and_resumed_it_gives_the_same_batches(tmp_path):
    curves = BySource({"a": Lengths(Linear(2, 6)), "b": Lengths(Linear(9, 2))})
    stages = [Stage("one", "8 steps", train_dataset=Mixture({"a": Linear(1, 0.3), "b": Linear(0, 0.7)}))]
    whole = run(tmp_path / "whole", stages, data_collator=curves)
    whole.train()
    first = run(tmp_path / "cut", stages, data_collator=curves)
    real, count = first.training_step, iter(range(99))

    def step(*args, **kwargs):
        if next(count) == 4:
            first.request_stop("here")
        return real(*args, **kwargs)

    first.training_step = step
    with pytest.raises(RunInterrupted):
        first.train()
    second = run(tmp_path / "cut", stages, data_collator=curves)
    second.args.dataloader_num_workers = 2
    second.train(resume_from_checkpoint=True)
    both = [*first.trained, *second.trained]
    assert len(both) == len(whole.trained) == 8
    for one, other in zip(both, whole.trained, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert len({tuple(batch["input_ids"].shape) for batch in both}) > 2


def test_evaluation_rows_that_name_their_source_tell_the_collator_and_not_the_model(tmp_path):
    both = concatenate_datasets([A.select([0]).add_column("source", ["a"]), B.select([0]).add_column("source", ["b"])])
    stages = [Stage("one", "2 steps", train_dataset=Mixture(["a", "b"]))]
    given = {}
    trainer = run(tmp_path, stages, eval_dataset=both)
    trainer.model.register_forward_pre_hook(lambda model, args, kwargs: given.update(kwargs), with_kwargs=True)
    trainer.train()
    assert [widths(batch) for batch in trainer.measured] == [{"a": {2}, "b": {5}}] * len(trainer.measured)
    assert trainer.measured
    assert not {"drawn", "source"} & given.keys()
