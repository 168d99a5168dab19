"""A cache is written whole: resumed where it was cut, found where it is finished, refused where it cannot be."""

from __future__ import annotations

import pytest

from hf_stages import CachedTeacher, Teacher
from tests.support import tiny
from tests.teachers.caching import padded, ragged

pytestmark = pytest.mark.usefixtures("quick_gc")


class Dies(list):
    """Fails after so many rows were read."""

    def __init__(self, rows, left: int):
        super().__init__(rows)
        self.left = left

    def __getitem__(self, index):
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__getitem__(index)


def test_a_killed_run_goes_on_behind_its_last_shard(tmp_path, monkeypatch):
    rows = ragged(20)
    Teacher(tiny.llama(7)).cache(rows, tmp_path / "whole", collator=padded, batch_size=2, shard_rows=4)
    monkeypatch.setattr("hf_stages.teachers.cache_writer.fingerprint", lambda value: "same")
    job = {"collator": padded, "batch_size": 2, "shard_rows": 4}
    with pytest.raises(KeyboardInterrupt):
        Teacher(tiny.llama(7)).cache(Dies(rows, 11), tmp_path / "cut", **job)
    with pytest.raises(ValueError, match=r"its writing was cut; call Teacher\.cache again"):
        CachedTeacher(tmp_path / "cut").summary()
    again = Dies(rows, 12)
    Teacher(tiny.llama(7)).cache(again, tmp_path / "cut", **job)
    assert again.left == 0  # 8 of 20 rows were there
    assert not list(tmp_path.glob(".*"))
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.suffix in (".bin", ".npy"):
            assert path.read_bytes() == (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_another_job_begins_anew_and_a_finished_one_is_found(tmp_path, caplog):
    rows, folder = ragged(8), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        Teacher(tiny.llama(7)).cache(Dies(rows, 5), folder, collator=padded, batch_size=2, shard_rows=2)
    cached = Teacher(tiny.llama(8)).cache(rows, folder, collator=padded, batch_size=2, shard_rows=2)
    assert cached.store.manifest["rows"] == 8
    written = (folder / "cache.json").stat().st_mtime_ns
    assert Teacher(tiny.llama(8)).cache(rows, folder, collator=padded).content == cached.content
    assert (folder / "cache.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"holds another cache \(teacher.fingerprint: "):
        Teacher(tiny.llama(7)).cache(rows, folder, collator=padded)
    with pytest.raises(ValueError, match=r"holds another cache \(data.fingerprint: .*choose another folder"):
        Teacher(tiny.llama(8)).cache(rows[:4], folder, collator=padded)


def test_rows_that_come_twice_are_kept_once(tmp_path):
    rows = ragged(4)
    cached = Teacher(tiny.llama(7)).cache(rows + rows, tmp_path / "c", collator=padded)
    assert cached.store.manifest["rows"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected how many logits to keep"),
        ({"k": 64}, "fewer than the teacher's 64 logits, got 64"),
        ({"k": 4, "logits": False}, "but logits=False"),
        ({"logits": False}, "nothing to keep"),
        ({"dtype": "int8"}, "dtype: expected float32, float16, bfloat16"),
        ({"hidden": [3]}, r"hidden: expected layers 0 \(embeddings\) to 2, got 3"),
        ({"hidden": ["encoder.hidden.1"]}, "hidden: 'encoder.hidden.1': .*one stack"),
        ({"dataset": iter([])}, "a stream is never the same twice"),
    ],
)
def test_what_cannot_be_cached(tmp_path, options, message):
    given = {"dataset": tiny.lm_data(8), "folder": tmp_path / "c", **options}
    with pytest.raises(ValueError, match=message):
        Teacher(tiny.llama(7)).cache(**given)
    with pytest.raises(ValueError, match="k: this teacher gives one row of logits per example"):
        Teacher(tiny.bert(7)).cache(tiny.class_data(4), tmp_path / "b", k=2)


def test_values_beyond_float16_are_refused(tmp_path):
    model = tiny.llama(7)
    model.model.embed_tokens.weight.data *= 1e7
    with pytest.raises(ValueError, match=r"hidden\.0 has values beyond float16's 65504; use bfloat16"):
        Teacher(model).cache(tiny.lm_data(4), tmp_path / "c", hidden=[0], dtype="float16")
