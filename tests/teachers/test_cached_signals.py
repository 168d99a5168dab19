"""A cached teacher gives what the live one gives, in any order, batch and padding."""

from __future__ import annotations

import pytest
import torch

from hf_stages import CachedTeacher, StagedTrainer, Teacher
from hf_stages.losses import HiddenMSE, LogitKL, Loss, TaskLoss
from hf_stages.teachers.cache_reader import CacheReader
from hf_stages.teachers.live import LiveTeacher
from tests.support import tiny
from tests.teachers.caching import CPU, dense, padded, ragged, trained

pytestmark = pytest.mark.usefixtures("quick_gc")


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
