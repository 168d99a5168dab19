"""The examples of compression show what they say: one bit and two bits learn back what quantizing took."""

from __future__ import annotations

import json

import pytest
from transformers import BertForSequenceClassification

import binary_vit
import quantize_classifier
import quantize_trec
import ternary_llama
from distil_trec import LABELS
from hf_stages.data.sample_text import blocks, prose
from tests.data.augmentation.tiny_models import WORDS, wordpieces
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc", "one_thread")


def test_both_ways_to_one_bit_keep_most_of_the_teacher(tmp_path):
    teacher, two, multi, single = quantize_classifier.main(tmp_path, 40).values()
    assert teacher > 0.8
    assert min(two, multi, single) > 0.65  # chance is 0.5
    folders = sorted(path.name for path in (tmp_path / "multi").glob("0?-*"))
    boxes = ["01-general", "02-ternary-features", "03-ternary-logits", "04-binary-features", "05-binary-logits"]
    assert folders == boxes
    split = json.loads((tmp_path / "multi" / boxes[3] / "stage.json").read_text())
    assert split["boundary"]["deviations"]["SplitTernary"] < 1e-4
    assert abs(split["boundary"]["shock"]["accuracy"]) < 0.01


def test_an_adapter_repairs_a_ternary_llama(tmp_path):
    whole, ternary, repaired = ternary_llama.main(tmp_path, 30).values()
    assert 0.98 * whole < repaired < 0.5 * (whole + ternary)


@pytest.mark.slow
def test_a_transformer_of_pictures_is_binary_and_sees_again(tmp_path):
    full, cut, binary = binary_vit.main(tmp_path, 30).values()
    assert full > 0.85
    assert binary > cut + 0.1


@pytest.mark.slow
def test_the_rows_of_the_table_are_made_and_a_second_start_repeats_nothing(tmp_path, capsys):
    config = type(tiny.bert_config()).from_dict(
        {**tiny.bert_config().to_dict(), "num_hidden_layers": 6, "vocab_size": 258, "num_labels": 6}
    )
    tokenizer = wordpieces()
    tokenizer.eos_token = tokenizer.sep_token  # blocks of text end each text with it
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    questions = [f"{label}:x {' '.join(WORDS[number:][:6])} ?" for number in range(18) for label in LABELS]
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(questions))
    blocks(prose(4_000), tokenizer, 32).remove_columns("labels").save_to_disk(str(tmp_path / "corpus"))
    runs = ["multi", "single", "no-teacher", "3-layers", "per-tensor", "augmented", "half-width"]
    words = [f"--{name}={tmp_path / folder}" for name, folder in (("base", "base"), ("data", "."), ("out", "out"))]
    words += [f"--corpus={tmp_path / 'corpus'}", "--general", "2", "--copies", "1"]
    for _ in range(2):
        quantize_trec.main([*words, "--runs", *runs, "--epochs", "1", "--tuning", "1", "--seeds", "0"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " seed " in line]
    assert lines[:8] == lines[8:]
    assert [line[0] for line in lines[:8]] == ["teacher", *runs]
    assert set(json.loads((tmp_path / "out" / "multi-0" / "result.json").read_text())) == {"dev", "test", "2-bit"}
