"""A cached teacher says what the live one says: in any order, batch and padding, resumed or not; or it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_stages import CachedTeacher, Stage, StagedTrainer, Teacher, recipes
from hf_stages.losses import AttentionKL, HiddenMSE, LogitKL, Loss, TaskLoss
from hf_stages.recipes.files import resolve_paths
from hf_stages.teachers.cache_reader import CacheReader
from hf_stages.teachers.live import LiveTeacher
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")
CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""With AVX512-BF16 bitsandbytes multiplies 4-bit weights of a multiple of 32 outputs alone: k_proj and v_proj have 32."""


def trainer_of(out: Path, teacher, loss, *, data=None, batch: int = 4, **options) -> StagedTrainer:
    given = {"per_device_train_batch_size": batch, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    given |= {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    data = tiny.lm_data() if data is None else data
    stages = [Stage("a", "6 steps", loss=loss)]
    model = options.pop("model", None) or tiny.llama()
    return StagedTrainer(
        model, TrainingArguments(str(out), **given), stages=stages, teacher=teacher, train_dataset=data, **options
    )


def trained(out: Path, teacher, loss, **options) -> torch.Tensor:
    trainer = trainer_of(out, teacher, loss, **options)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def ragged(rows: int = 12) -> list[dict]:
    """Rows of different lengths, none of them twice."""
    draw = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(3, tiny.VOCAB, (3 + i % 7,), generator=draw).tolist()} for i in range(rows)]


def padded(rows: list[dict], *, left: bool = False, extra: int = 0) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows) + extra
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row["input_ids"]), width) if left else slice(0, len(row["input_ids"]))
        ids[i, at], mask[i, at] = torch.tensor(row["input_ids"]), 1
    return {"input_ids": ids, "attention_mask": mask}


def dense(signals) -> torch.Tensor:
    final = signals.final
    return final if torch.is_tensor(final) else final.module(final.hidden)


# ---- the same as live -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", [TaskLoss() + LogitKL(temperature=2) + HiddenMSE(), 1.0 * HiddenMSE()], ids=["all", "hidden"]
)
def test_full_logits_give_the_live_run_bit_for_bit(tmp_path, loss):
    cached = Teacher(tiny.llama(7)).cache(tiny.lm_data(), tmp_path / "cache", hidden=[0, 1, -1], batch_size=4)
    assert trained(tmp_path / "live", tiny.llama(7), loss).equal(trained(tmp_path / "cached", cached, loss))


def test_the_largest_k_train_within_their_bound(tmp_path, monkeypatch):
    """The gradients differ by no more than twice the tail; a sharp teacher has nearly none."""
    teacher = tiny.llama(7)
    teacher.lm_head.weight.data *= 45
    monkeypatch.setattr(StagedTrainer, "probe_teacher", False)  # it is surely wrong, which the probe rightly refuses
    cached = Teacher(teacher).cache(tiny.lm_data(), tmp_path / "cache", k=16)
    found = cached.store.manifest
    assert found["kept"] > 0.99 > found["least"]
    assert "k=16 of 64" in cached.summary()
    assert f"{found['kept']:.4f}" in cached.summary()
    assert found["bytes"] == 512 * (16 * 8 + 8)
    live, mine = (trained(tmp_path / n, t, 1.0 * LogitKL()) for n, t in (("live", teacher), ("cached", cached)))
    started = torch.cat([p.detach().flatten() for p in tiny.llama().parameters()])
    assert 0 < (live - mine).norm() < 0.1 * (live - started).norm()


@pytest.mark.parametrize("k", [None, 63])
@pytest.mark.parametrize(("left", "extra"), [(False, 0), (False, 5), (True, 2)])
def test_rows_are_known_again_in_any_batch_and_padding(tmp_path, k, left, extra):
    rows, model = ragged(), tiny.llama(7)
    cached = Teacher(model).cache(rows, tmp_path / "c", collator=padded, hidden=[1], k=k, batch_size=5, shard_rows=5)
    needs = frozenset({"final", "hidden.1"})
    batch = padded([rows[i] for i in (7, 3, 11, 0, 3)], left=left, extra=extra)
    live, found = LiveTeacher(model, needs, CPU)(batch), CacheReader(cached, needs)(batch)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(dense(found)[mask], dense(live)[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["hidden.1"][mask], live["hidden.1"][mask], rtol=1e-4, atol=1e-5)
    assert not found["hidden.1"][~mask].any()


def _t5_batch(rows):
    labels = torch.tensor([row["labels"] for row in rows])
    return {**padded(rows), "labels": labels}


CASES = {
    "bert": (tiny.bert, [{**row, "labels": i % 3} for i, row in enumerate(ragged())], padded, {"final", "hidden.2"}),
    "t5": (tiny.t5, [{**row, "labels": [5 + i, 6, 1] if i % 2 else [7 + i, 1, -100]} for i, row in enumerate(ragged())],
           _t5_batch, {"final", "decoder.hidden.1", "encoder.hidden.2"}),
    "vit": (tiny.vit, tiny.image_data(12), None, {"final", "hidden.1"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_other_architectures(tmp_path, name):
    build, rows, collator, needs = CASES[name]
    model, hidden = build(7), [key for key in needs if key != "final"]
    cached = Teacher(model).cache(rows, tmp_path / "c", collator=collator, hidden=hidden, batch_size=4)
    chosen = [rows[i] for i in (9, 2, 4)]
    batch = collator(chosen) if collator else {"pixel_values": torch.stack([row["pixel_values"] for row in chosen])}
    live, found = LiveTeacher(model, frozenset(needs), CPU)(batch), CacheReader(cached, frozenset(needs))(batch)
    for key in needs:
        mine, theirs = (dense(s) if key == "final" else s[key] for s in (found, live))
        assert mine.shape == theirs.shape
        shown = torch.ones(mine.shape[:2], dtype=torch.bool)
        if name == "t5":
            shown = batch["labels"].ne(-100) if key in ("final", "decoder.hidden.1") else batch["attention_mask"].bool()
        elif name == "bert" and key != "final":
            shown = batch["attention_mask"].bool()
        torch.testing.assert_close(mine[shown], theirs[shown], rtol=1e-4, atol=1e-5)


def test_dtypes(tmp_path):
    data, model = tiny.lm_data(8), tiny.llama(7)
    batch = {"input_ids": torch.tensor(data["input_ids"][:3])}
    true = model(**batch).logits
    for dtype, off in (("float16", 1e-3), ("bfloat16", 1e-2)):
        cached = Teacher(model).cache(data, tmp_path / dtype, dtype=dtype, hidden=[2])
        signals = CacheReader(cached, frozenset({"logits", "hidden.2"}))(batch)
        assert str(signals.logits.dtype) == str(signals["hidden.2"].dtype) == f"torch.{dtype}"
        assert 0 < (signals.logits.float() - true).abs().max() < off


def test_what_hidden_losses_need_stops_the_teacher_early(tmp_path):
    """Without logits the head never runs, and neither does a layer above the deepest one kept."""
    model = tiny.llama(7)
    model.model.layers[1].register_forward_hook(lambda *_: pytest.fail("ran"))
    cached = Teacher(model).cache(tiny.lm_data(8), tmp_path / "c", hidden=[1], logits=False)
    assert list(cached.store.arrays) == ["hidden.1"]


# ---- writing --------------------------------------------------------------------------------------------------------


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


# ---- stale, unfit, damaged: refused before the first step ---------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    from hf_stages.data.sample_text import byte_tokenizer

    folder = tmp_path_factory.mktemp("caches") / "c"
    Teacher(tiny.llama(7)).cache(
        tiny.lm_data(), folder, hidden=[1], tokenizer=byte_tokenizer(), shard_rows=16, batch_size=8
    )
    return folder


def refused(tmp_path: Path, teacher, message: str, loss=None, **options) -> None:
    trainer = trainer_of(tmp_path / "out", teacher, loss or 1.0 * LogitKL(), **options)
    with pytest.raises(ValueError, match=message):
        trainer.plan()


def test_what_the_cache_does_not_hold_is_refused_by_name(tmp_path, cache):
    refused(tmp_path, CachedTeacher(cache), r"loss HiddenMSE: needs the teacher's hidden\.0, but .* holds hidden\.1; write it "
            r"anew with hidden=\[0, 1, 2\]", HiddenMSE())  # fmt: skip
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


# ---- loaded, quantized, declared ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("saved")
    tiny.llama(7, **WIDE).save_pretrained(folder)
    return str(folder)


def test_a_path_teaches_as_its_model_does(tmp_path, saved):
    loss = 1.0 * LogitKL()
    live = trained(tmp_path / "live", tiny.llama(7, **WIDE), loss)
    assert trained(tmp_path / "path", Teacher(saved), loss).equal(live)
    half = Teacher(saved, dtype="bfloat16")
    assert half.load(tiny.llama()).dtype == torch.bfloat16
    assert half.skeleton(tiny.llama()).device.type == "meta"
    assert 0 < (trained(tmp_path / "half", half, loss) - live).abs().max() < 1e-2


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_bitsandbytes(tmp_path, saved, load_in):
    bnb = pytest.importorskip("bitsandbytes", reason="no bitsandbytes: quantized teachers are not tested")
    teacher = Teacher(saved, load_in=load_in)
    model = teacher.load(tiny.llama())
    kind = {"8bit": bnb.nn.Linear8bitLt, "4bit": bnb.nn.Linear4bit}[load_in]
    assert type(model.model.layers[0].mlp.up_proj) is kind
    batch = {"input_ids": torch.tensor(tiny.lm_data(4)["input_ids"])}
    true = tiny.llama(7, **WIDE)(**batch).logits
    found = LiveTeacher(model, frozenset({"logits"}), CPU)(batch).logits.float()
    assert 0 < (found - true).norm() < {"8bit": 0.05, "4bit": 0.3}[load_in] * true.norm()
    trained(tmp_path / "run", teacher, TaskLoss() + LogitKL())
    cached = teacher.cache(tiny.lm_data(), tmp_path / "cache")
    batch = {"input_ids": torch.tensor(tiny.lm_data(4)["input_ids"])}
    torch.testing.assert_close(CacheReader(cached, frozenset({"logits"}))(batch).logits, found, rtol=1e-2, atol=1e-3)


def test_bad_teachers_are_refused_in_words(tmp_path, saved, monkeypatch):
    with pytest.raises(ValueError, match="load_in: expected '8bit', '4bit' or None, got 'int8'"):
        Teacher("x", load_in="int8")
    with pytest.raises(ValueError, match="load_in: this model is loaded already"):
        Teacher(tiny.llama(), load_in="8bit")
    with pytest.raises(ValueError, match="model: expected a path or a model, got int"):
        Teacher(3)
    refused(tmp_path, Teacher(str(tmp_path / "nowhere")), "stage 'a': teacher '.*nowhere': ")
    student = tiny.llama()
    refused(tmp_path, Teacher(student), "it is the model that is trained", model=student)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"load_in='8bit' needs bitsandbytes: pip install 'hf_stages\[bnb\]'"):
        Teacher(saved, load_in="8bit").load(tiny.llama())


def test_yaml_both_ways(tmp_path):
    text = """
model: student
teacher: {use: Teacher, model: big, load_in: 8bit, auto_class: AutoModelForCausalLM}
stages:
  - name: a
    until: 1 steps
    teacher: {use: CachedTeacher, folder: cache}
  - {name: b, until: 1 steps, teacher: base}
"""
    recipe = recipes.loads(text)
    assert recipe.teacher == Teacher("big", load_in="8bit", auto_class="AutoModelForCausalLM")
    assert recipe["a"].teacher == CachedTeacher("cache")
    assert recipes.loads(recipes.dump(recipe)) == recipe
    assert "use: CachedTeacher" in recipes.dump(recipe)
    (tmp_path / "cache").mkdir()
    (tmp_path / "big").mkdir()
    found = resolve_paths(recipe, tmp_path)
    assert (found.teacher.model, found["a"].teacher.folder) == (str(tmp_path / "big"), str(tmp_path / "cache"))


def test_a_recipe_is_cached_and_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    from hf_stages.commands.cli import main

    monkeypatch.chdir(tmp_path)
    tiny.llama(7).save_pretrained("big")
    tiny.llama(0).save_pretrained("small")
    for name, seed in (("one", 0), ("two", 1)):
        rows = "\n".join(json.dumps(row) for row in tiny.lm_data(16, seed=seed))
        Path(f"{name}.jsonl").write_text(rows)
    text = """
model: {path: small}
args: {output_dir: out, use_cpu: true, report_to: none, logging_strategy: "no"}
sources: {one: {path: json, data_files: one.jsonl}, two: {path: json, data_files: two.jsonl}}
teacher: TEACHER
train_dataset: one
stages:
  - {name: a, until: 2 steps, loss: [{use: LogitKL}, {use: HiddenMSE, layers: {1: 2}}]}
  - {name: b, until: 2 steps, loss: [TaskLoss, LogitKL], train_dataset: two}
"""
    Path("run.yaml").write_text(text.replace("TEACHER", "{use: Teacher, model: big}"))
    assert main(["cache-teacher", "run.yaml", "--to", "cache", "--k", "8", "--hidden", "2"]) == 0
    shown = capsys.readouterr().out
    assert "32 rows, 512 tokens" in shown
    assert "k=8 of 64 logits" in shown
    Path("cached.yaml").write_text(text.replace("TEACHER", "{use: CachedTeacher, folder: cache}"))
    shutil.rmtree("big")
    assert main(["run", "cached.yaml"]) == 0
    assert main(["cache-teacher", "cached.yaml", "--to", "again"]) == 2
    assert "expected {path: ...} or {use: Teacher, ...}, got CachedTeacher(" in capsys.readouterr().err


class Silent(Loss):
    """Says nothing of what it reads."""

    uses_teacher = True
    key = "logits"

    def items(self, batch):
        return batch["input_ids"].numel()

    def __call__(self, student, teacher, batch, t):
        return (student.logits - teacher.outputs[self.key]).pow(2).mean(-1).sum()


def test_a_loss_that_does_not_say_what_it_reads_finds_the_logits(tmp_path, cache):
    live = trained(tmp_path / "live", tiny.llama(7), 1.0 * Silent())
    assert live.equal(trained(tmp_path / "cached", CachedTeacher(cache), 1.0 * Silent()))
    other = Silent()
    other.key = "past_key_values"
    with pytest.raises(ValueError, match="the teacher's past_key_values is not in its cache"):
        trained(tmp_path / "other", CachedTeacher(cache), 1.0 * other)
