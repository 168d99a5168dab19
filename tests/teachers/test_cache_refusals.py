"""A cache of other data, another teacher or damaged files is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_stages import CachedTeacher, Teacher
from hf_stages.losses import AttentionKL, HiddenMSE, LogitKL
from tests.support import tiny
from tests.teachers.caching import refused, trainer_of

pytestmark = pytest.mark.usefixtures("quick_gc")


def test_what_the_cache_does_not_hold_is_refused_by_name(tmp_path, cache):
    refused(
        tmp_path,
        CachedTeacher(cache),
        r"loss HiddenMSE: needs the teacher's hidden\.0, but .* holds hidden\.1; write it "
        r"anew with hidden=\[0, 1, 2\]",
        HiddenMSE(),
    )
    refused(tmp_path, CachedTeacher(cache), r"loss AttentionKL: .*attention is not cached", AttentionKL())
    only = Teacher(tiny.llama(7)).cache(tiny.lm_data(8), tmp_path / "h", hidden=[1], logits=False)
    refused(tmp_path, only, "written with logits=False", data=tiny.lm_data(8))


def test_other_data_is_refused(tmp_path, cache):
    message = (
        r"stage 'a': teacher: .*cache is stale: it does not hold the row of 16 tokens that begins with input_ids \[\d+"
    )
    refused(tmp_path, CachedTeacher(cache), message, data=tiny.lm_data(seed=1))
    mixed = Dataset.from_list([*tiny.lm_data(30), *tiny.lm_data(10, seed=1)])
    trainer = trainer_of(tmp_path / "late", CachedTeacher(cache), 1.0 * LogitKL(), data=mixed)
    with pytest.raises(ValueError, match="cache is stale"):  # its first rows are known, so only training finds out
        trainer.train()
    typed = tiny.lm_data().add_column("position_ids", [list(range(16))] * 32)
    refused(tmp_path, CachedTeacher(cache), "written from input_ids, the batch has input_ids, position_ids", data=typed)


def test_another_teacher_or_tokenizer_is_refused(tmp_path, cache):
    from hf_stages.data.sample_text import byte_tokenizer

    refused(tmp_path, CachedTeacher(cache, of=tiny.llama(8)), "stale: it was written with other weights")
    trainer_of(tmp_path / "o", CachedTeacher(cache, of=tiny.llama(7)), 1.0 * LogitKL()).plan()
    other = byte_tokenizer()
    other.add_tokens(["<new>"])
    refused(tmp_path, CachedTeacher(cache), "another tokenizer than processing_class", processing_class=other)
    refused(
        tmp_path,
        Teacher(tiny.llama(7), tokenizer=byte_tokenizer()),
        "its tokenizer has 258 tokens",
        processing_class=other,
    )


def _cut(folder: Path) -> None:
    path = folder / "00001" / "logits.bin"
    path.write_bytes(path.read_bytes()[:-4])


def _schema(folder: Path) -> None:
    manifest = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**manifest, "schema": 9}))


def _edit(folder: Path) -> None:
    (folder / "cache.json").write_text((folder / "cache.json").read_text().replace('"k": null', '"k": 3'))


def _index(folder: Path) -> None:
    keys = np.load(folder / "keys.npy")
    np.save(folder / "keys.npy", keys + np.uint64(1))


DAMAGE = {
    "cut": (_cut, r"damaged: 00001/logits.bin is missing or has another size; delete it and write it anew"),
    "shard gone": (lambda folder: shutil.rmtree(folder / "00001"), "damaged: 00001 is missing"),
    "schema": (_schema, "written with schema 9, this version of hf_stages reads 1"),
    "edited": (_edit, r"cache.json was changed"),
    "json": (lambda folder: (folder / "cache.json").write_text("{"), r"cache.json cannot be read"),
    "index": (_index, r"keys.npy is missing or was changed"),
    "none": (shutil.rmtree, r"expected a teacher's cache, but there is no cache.json: write one with Teacher.cache"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused(tmp_path, cache, case):
    damage, message = DAMAGE[case]
    shutil.copytree(cache, tmp_path / "c")
    damage(tmp_path / "c")
    refused(tmp_path, CachedTeacher(tmp_path / "c"), f"stage 'a': teacher: .*{message}")


def test_verify_reads_everything(tmp_path, cache):
    shutil.copytree(cache, tmp_path / "c")
    path = tmp_path / "c" / "00001" / "logits.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    CachedTeacher(cache).verify()
    with pytest.raises(ValueError, match=r"damaged: 00001: logits.bin was changed"):
        CachedTeacher(tmp_path / "c").verify()


def test_a_run_is_not_resumed_with_another_cache(tmp_path):
    def run(seed: int, **options) -> None:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        Teacher(tiny.llama(seed)).cache(tiny.lm_data(), tmp_path / "c")
        trainer_of(tmp_path / "out", CachedTeacher(tmp_path / "c"), 1.0 * LogitKL()).train(**options)

    run(7)
    run(7, resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="teacher_cache: "):
        run(8, resume_from_checkpoint=True)
