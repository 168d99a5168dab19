"""The loss of an evaluation runs over all its tokens, whatever the batch size and padding; also in bits per byte."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.data.sample_text import byte_tokenizer
from hf_stages.evaluation.token_bytes import bytes_per_token
from hf_stages.losses import LogitKL
from hf_stages.training.trainer import StagedMixin
from tests.evaluation.ragged_rows import padded, ragged
from tests.support import tiny


def reference(model, rows: list[dict]) -> tuple[float, int]:
    """One row at a time, without padding: the sum of -log p over targets, and how many they are."""
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for place, target in enumerate(row["labels"][1:]):
            if target != -100:
                total, count = total - logs[place, target].item(), count + 1
    return total, count


def trainer_of(tmp_path, model, *, batch: int = 4, collator=padded, staged: bool = True, **options):
    args = TrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=batch,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    given = {"data_collator": collator, "train_dataset": Dataset.from_list(ragged(8, 1)), **options}
    stages = {"stages": given.pop("stages", [Stage("a", "1 steps")])}
    return (StagedTrainer if staged else Trainer)(model, args, **(stages if staged else {}), **given)


def test_loss_is_over_all_tokens_at_any_batch_size_and_padding(tmp_path):
    model, rows = tiny.llama().eval(), ragged(23, seed=2)
    total, count = reference(model, rows)
    data, means = Dataset.from_list(rows), []
    for batch in (1, 2, 7):
        for extra in (0, 9):
            trainer = trainer_of(tmp_path, model, batch=batch, collator=lambda r, extra=extra: padded(r, extra))
            found = trainer.evaluate({"a": data})
            assert found["eval_a_loss"] == pytest.approx(total / count, rel=1e-6)
            assert found["eval_a_items"] == count
        plain = trainer_of(tmp_path, model, batch=batch, staged=False).evaluate(data)["eval_loss"]
        means.append(abs(plain - total / count) if plain == plain else 1.0)  # transformers 5.19: NaN at batch size 1
    assert max(means) > 1e-3  # Trainer's mean of means is another number: the test would see it


def test_a_set_without_a_label_has_no_loss(tmp_path):
    """0/0 in stage.json would be no JSON, and outside of every gate's budget."""
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}]
    sets = {"mute": Dataset.from_list(rows), "own": Dataset.from_list(ragged(4, seed=3))}
    trainer = trainer_of(tmp_path, tiny.llama(), eval_dataset=sets)
    trainer.train()
    domains = json.loads((tmp_path / "01-a" / "stage.json").read_text(), parse_constant=pytest.fail)["domains"]
    assert "loss" in domains["own"]
    assert "loss" not in domains.get("mute", {})


def test_other_tasks_keep_their_items(tmp_path):
    """A classifier's items are rows."""
    model, data = tiny.bert().eval(), tiny.class_data(11)
    trainer = trainer_of(tmp_path, model, batch=4, collator=None, train_dataset=data)
    found = trainer.evaluate(data)
    logits = model(input_ids=torch.tensor(data["input_ids"])).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(data["labels"])).item()
    assert (found["eval_loss"], found["eval_items"]) == (pytest.approx(expected, rel=1e-6), 11)


def test_encoder_decoder_counts_every_label(tmp_path):
    rows = [{"input_ids": [3, 4, 5], "labels": [7] * n} for n in (1, 2, 5)]
    found = {}
    for batch in (1, 3):
        trainer = trainer_of(
            tmp_path, tiny.t5(), batch=batch, collator=_pad_labels, train_dataset=Dataset.from_list(rows)
        )
        found[batch] = trainer.evaluate(Dataset.from_list(rows))
    assert found[1]["eval_items"] == 8
    assert found[1]["eval_loss"] == pytest.approx(found[3]["eval_loss"], rel=1e-6)


class OwnStep(StagedTrainer):
    """A prediction step that asks the model itself, as many in the wild do; nothing of it passes ``compute_loss``."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        labels = inputs.pop("labels")
        with torch.no_grad():
            outputs = model(**self._prepare_inputs(inputs), labels=labels)
        return outputs.loss.mean(), outputs.logits, labels


class TwiceStep(StagedTrainer):
    """A prediction step that computes the loss twice: its rows count once."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            self.compute_loss(model, {**inputs, "labels": inputs["labels"].flip(0)})
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


class Generates(StagedMixin, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [OwnStep, TwiceStep, Generates, "loss only"])
def test_a_loss_that_bypasses_compute_loss_is_weighed_too(tmp_path, kind, smoothing):
    """Seq2SeqTrainer takes its model's own where it generates, and a trainer of one's own whatever it likes."""
    if smoothing and kind is OwnStep:
        pytest.skip("its loss is the model's own")
    draw = random.Random(5)
    rows = [{"input_ids": [3, 4, 5], "labels": [draw.randrange(3, 60)] * draw.randint(1, 9)} for _ in range(8)]
    data, found = Dataset.from_list(rows), []
    for batch in (8, 2, 1):
        args = Seq2SeqTrainingArguments(
            str(tmp_path),
            per_device_eval_batch_size=batch,
            predict_with_generate=True,
            generation_max_length=4,
            prediction_loss_only=kind == "loss only",
            label_smoothing_factor=smoothing,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = tiny.t5()
        trainer = (kind if isinstance(kind, type) else Generates)(
            model,
            args,
            train_dataset=data,
            data_collator=lambda r, model=model: _with_decoder(model, r),
            compute_metrics=lambda p: {"rows": len(p.label_ids)},
            stages=[Stage("a", "1 steps")],
        )
        found.append(trainer.evaluate(data))
    labels = sum(len(row["labels"]) for row in rows)
    assert [metrics["eval_items"] for metrics in found] == [labels] * 3
    assert found[1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-6)
    assert found[2]["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-6)
    if kind != "loss only":
        assert found[0]["eval_rows"] == 8


def _with_decoder(model, rows):
    """As DataCollatorForSeq2Seq has it: label smoothing takes the labels away from the model."""
    batch = _pad_labels(rows)
    return {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])}


def _pad_labels(rows):
    longest = max(len(row["labels"]) for row in rows)
    labels = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows]), "labels": torch.tensor(labels)}


def test_label_smoothing_and_an_own_loss_are_averaged_over_items(tmp_path):
    """Whatever the trainer below computes is a mean over the batch; weighted, it no longer depends on the batch."""

    def own(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].reshape(-1, tiny.VOCAB)
        return (
            torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum") / num_items_in_batch
        )

    data, model = Dataset.from_list([r for r in ragged(9, 3) if any(i != -100 for i in r["labels"][1:])]), tiny.llama()
    total, count = reference(model.eval(), list(data))
    for batch in (1, 4):
        found = trainer_of(tmp_path, model, batch=batch, compute_loss_func=own).evaluate(data)
        assert found["eval_loss"] == pytest.approx(total / count, rel=1e-6)


# ---- bits per byte -------------------------------------------------------------------------------------------------


def text_data(text: str, tokenizer, length: int = 12) -> Dataset:
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    rows = [ids[i : i + length] for i in range(0, len(ids), length)]
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


TEXT = "Grüße: naïve 世界 tokens, def f(x):\n\treturn 1\n" * 3


def test_bits_per_byte_from_a_byte_level_tokenizer(tmp_path):
    tokenizer, model = byte_tokenizer(), tiny.llama(vocab_size=258).eval()
    data = text_data(TEXT, tokenizer)
    total, _ = reference(model, list(data))
    targets = sum(len(row) - 1 for row in data["input_ids"]) - 1  # one byte each; the end token is none
    found = trainer_of(tmp_path, model, batch=5, processing_class=tokenizer).evaluate(data)
    assert found["eval_bits_per_byte"] == pytest.approx(total / math.log(2) / targets, rel=1e-6)


def test_a_column_of_bytes_goes_before_the_tokenizer(tmp_path):
    tokenizer, model = byte_tokenizer(), tiny.llama(vocab_size=258).eval()
    data = text_data(TEXT, tokenizer)
    data = data.add_column("bytes", [100] * len(data))
    total, _ = reference(model, list(data))
    found = trainer_of(tmp_path, model, batch=5, processing_class=tokenizer).evaluate({"x": data})
    assert found["eval_x_bits_per_byte"] == pytest.approx(total / math.log(2) / (100 * len(data)), rel=1e-6)


@pytest.mark.parametrize("why", ["no tokenizer", "word pieces", "label smoothing", "a classifier"])
def test_bits_per_byte_are_left_out_where_they_would_be_wrong(tmp_path, why):
    options = {"processing_class": None if why == "no tokenizer" else byte_tokenizer()}
    if why == "word pieces":
        pieces = Tokenizer(models.WordPiece(vocab={f"t{i}": i for i in range(258)}, unk_token="t0"))
        pieces.decoder = decoders.WordPiece()
        options["processing_class"] = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="t1")
    model, data = tiny.llama(vocab_size=258), text_data(TEXT, byte_tokenizer())
    if why == "a classifier":
        model, data = tiny.bert(vocab_size=258), tiny.class_data(8)
        options["data_collator"] = None
    trainer = trainer_of(tmp_path, model, **options)
    trainer.args.label_smoothing_factor = 0.1 if why == "label smoothing" else 0.0
    assert "eval_bits_per_byte" not in trainer.evaluate(data)


@pytest.mark.parametrize("why", ["label smoothing", "a classifier", "not numbers", "a row without", "a dropped batch"])
def test_a_column_of_bytes_is_left_alone_where_it_would_be_wrong(tmp_path, why):
    model, data, options = tiny.llama(vocab_size=258), text_data(TEXT, byte_tokenizer()), {"processing_class": None}
    if why == "a classifier":
        model, data, options["data_collator"] = tiny.bert(vocab_size=258), tiny.class_data(8), None
    sizes = {"not numbers": [b"x"] * len(data), "a row without": [None] + [1] * (len(data) - 1)}
    trainer = trainer_of(tmp_path, model, **options)
    trainer.args.label_smoothing_factor = 0.1 if why == "label smoothing" else 0.0
    trainer.args.dataloader_drop_last = why == "a dropped batch"
    found = trainer.evaluate(data.add_column("bytes", sizes.get(why, [100] * len(data))))
    assert "eval_loss" in found
    assert "eval_bits_per_byte" not in found


@pytest.mark.parametrize("text", ["  Grüße\n\tnaïve 世界 <x> ", "def f(x): return 1\n\n"])
def test_sentence_pieces_give_the_bytes_of_the_text(text):
    alphabet = sorted(set(text.replace(" ", "\u2581")) - {"世", "\n"})
    vocab = {token: i for i, token in enumerate(["<s>", *(f"<0x{i:02X}>" for i in range(256)), *alphabet])}
    built = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<s>"))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    built.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>")
    table = bytes_per_token(tokenizer, 300)
    ids = tokenizer(text)["input_ids"]
    assert sum(table[i].item() for i in ids) == len(text.encode())
    assert table[0] == 0
    assert len(table) == max(300, len(tokenizer))


def test_stage_json_holds_every_domain(tmp_path):
    model, tokenizer = tiny.llama(vocab_size=258), byte_tokenizer()
    sets = {name: text_data(text, tokenizer) for name, text in (("code", "x = 1\n" * 9), ("code_hard", TEXT))}
    trainer = trainer_of(
        tmp_path, model, processing_class=tokenizer, eval_dataset=sets, train_dataset=sets["code"],
        stages=[Stage("code", "2 steps"), Stage("b", "1 steps", train_dataset=sets["code_hard"])],
    )  # fmt: skip
    trainer.train()
    for folder in ("01-code", "02-b"):
        stage = json.loads((tmp_path / folder / "stage.json").read_text())
        assert set(stage["domains"]) == {"code", "code_hard"}
        assert stage["domains"]["code_hard"]["loss"] == stage["metrics"]["eval_code_hard_loss"]
        assert stage["domains"]["code"].keys() >= {"loss", "items", "bits_per_byte"}
        assert stage["domains_start"].keys() == {"code", "code_hard"}
    assert stage["trains_on"] == ["b"]


def test_earlier_stages_own_sets_are_measured_later(tmp_path):
    """A stage that evaluates its own set alone still says what became of the others, by the names of their stages."""
    data = {name: tiny.lm_data(seed=seed) for seed, name in enumerate(("one", "two"))}
    stages = [Stage(name, "1 steps", train_dataset=rows, eval_dataset=rows) for name, rows in data.items()]
    trainer = trainer_of(tmp_path, tiny.llama(), collator=None, stages=stages)
    trainer.train()
    stage = json.loads((tmp_path / "02-two" / "stage.json").read_text())
    assert set(stage["domains"]) == {"one", "two"}
    total, count = reference(trainer.model.eval(), list(data["one"]))
    assert stage["domains"]["one"]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert stage["metrics"]["eval_loss"] == stage["domains"]["two"]["loss"]


def test_teacher_terms_are_measured_beside_the_loss(tmp_path):
    """Terms that need the logits see a batch as before."""
    loss = LogitKL()
    stage = Stage("a", "1 steps", loss=loss)
    data = tiny.lm_data(9)
    trainer = trainer_of(
        tmp_path,
        tiny.llama(),
        collator=None,
        batch=4,
        stages=[stage],
        teacher=tiny.llama(seed=1),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.train()
    found = json.loads((tmp_path / "01-a" / "stage.json").read_text())["metrics"]
    total, count = reference(trainer.model.eval(), list(data))
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert "eval_LogitKL" in found
