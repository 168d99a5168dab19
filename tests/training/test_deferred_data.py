"""Training data that Trainer does not take when it is made, and stages do."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from tests.support import tiny

ROWS = list(tiny.lm_data(16))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield from ROWS


def arguments(out, **changes):
    return TrainingArguments(
        str(out),
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **changes,
    )


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("stream", [Endless, lambda: tiny.lm_data(16).to_iterable_dataset()], ids=["torch", "datasets"])
def test_a_stream_without_length_needs_no_max_steps(tmp_path, stream, positional, caplog):
    given = stream()
    places = ((tiny.llama(), arguments(tmp_path), None, given), {})
    names = ((tiny.llama(), arguments(tmp_path)), {"train_dataset": given})
    args, kwargs = places if positional else names
    trainer = StagedTrainer(*args, stages=[Stage("a", "3 steps")], **kwargs)
    assert trainer.train_dataset is given
    assert trainer.args.max_steps == -1
    trainer.train()
    assert trainer.state.global_step == 3
    assert "max_steps" not in caplog.text


def test_a_stream_of_a_stage_alone(tmp_path):
    trainer = StagedTrainer(tiny.llama(), arguments(tmp_path), stages=[Stage("a", "2 steps", train_dataset=Endless())])
    trainer.train()
    assert trainer.state.global_step == 2


def test_without_stages_it_is_trainer(tmp_path):
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        StagedTrainer(tiny.llama(), arguments(tmp_path), train_dataset=Endless())


def test_what_a_stream_cannot_do_is_refused_by_the_plan(tmp_path):
    def plan(until="1 steps", **changes):
        return StagedTrainer(
            tiny.llama(), arguments(tmp_path, **changes), train_dataset=Endless(), stages=[Stage("a", until)]
        ).plan()

    with pytest.raises(ValueError, match="stage 'a': until: '1 epochs' on a stream without a length"):
        plan("1 epochs")
    with pytest.raises(
        ValueError, match="stage 'a': train_sampling_strategy: 'group_by_length' needs a dataset with a length"
    ):
        plan(train_sampling_strategy="group_by_length")


def test_a_method_of_another_meaning_is_left_alone(tmp_path):
    class Own(StagedTrainer):
        def _prepare_dataset(self, dataset):
            raise AssertionError("called")

    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", train_dataset=ROWS[:4])]
    Own(tiny.llama(), arguments(tmp_path), train_dataset=ROWS, stages=stages).train()
