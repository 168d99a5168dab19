"""A batch is split in one place and given whole again."""

from __future__ import annotations

from hf_stages.core.batch import Batch

COLUMNS = {"input_ids": [1, 2], "labels": [0], "source": [1], "drawn": [[1, 2]], "token_type_ids": [0, 0]}


def test_inputs_sources_and_the_teachers_columns_stand_apart():
    batch = Batch.split(COLUMNS, by_source=True, teacher_only={"token_type_ids", "of another batch"})
    assert batch.inputs == {"input_ids": [1, 2], "labels": [0]}
    assert batch.sources == {"source": [1], "drawn": [[1, 2]]}
    assert batch.teacher_only == {"token_type_ids": [0, 0]}
    assert batch.columns == COLUMNS
    assert batch.is_split


def test_without_sources_a_column_of_that_name_is_an_input():
    batch = Batch.split(COLUMNS)
    assert batch.inputs == COLUMNS
    assert not batch.is_split


def test_a_trainer_that_takes_labels_out_of_its_inputs_changes_no_batch():
    inputs = {"input_ids": [1, 2], "labels": [0]}
    batch = Batch(inputs, sources={"source": [1]})
    inputs.pop("labels")
    assert batch.columns == {"input_ids": [1, 2], "labels": [0], "source": [1]}
    assert batch.with_inputs(inputs).columns == {"input_ids": [1, 2], "source": [1]}
