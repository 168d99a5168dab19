"""The examples of distillation show what they say: the student gains what it was taught."""

from __future__ import annotations

import json

import pytest
from transformers import BertForSequenceClassification, BertModel

import distil_classifier
import distil_decoder
import distil_trec
import distil_vit
import lora_self_distillation
from hf_stages.data.sample_text import blocks, byte_tokenizer, prose
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc", "one_thread")


def test_a_classifier_cut_in_half_recovers_without_a_label(tmp_path):
    teacher, cut, distilled = distil_classifier.main(tmp_path, 36).values()
    assert teacher > 0.75
    assert distilled > cut + 0.03
    assert distilled > teacher - 0.05


@pytest.mark.slow
def test_a_decoder_of_half_the_width_learns_more_from_its_teacher(tmp_path):
    teacher, before, distilled, alone = distil_decoder.main(tmp_path, 40).values()
    assert teacher < distilled < alone < before


@pytest.mark.slow
def test_an_adapter_forgets_less_near_its_base(tmp_path):
    pytest.importorskip("peft")
    base, plain, near = lora_self_distillation.main(tmp_path, 30).values()
    assert base[0] < near[0] < plain[0]  # prose
    assert plain[1] < near[1] < base[1]  # code


@pytest.mark.slow
def test_a_transformer_of_pictures_is_trained_and_distilled_in_one_run(tmp_path):
    teacher, cut, distilled = distil_vit.main(tmp_path, 30).values()
    assert teacher > 0.85
    assert distilled > cut + 0.1


def test_arrangements_are_compared_and_a_second_start_repeats_nothing(tmp_path, capsys):
    """On a few made-up questions: each arrangement and each start trains, is scored, and is not trained again."""
    config = type(tiny.bert_config()).from_dict(
        {**tiny.bert_config().to_dict(), "num_hidden_layers": 6, "vocab_size": 258, "num_labels": 6}
    )
    tokenizer = byte_tokenizer()
    for kind, name in ((BertForSequenceClassification, "tuned"), (BertModel, "base")):
        kind(config).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "tuned")
    questions = [f"{label}:x what is {number} ?" for number in range(18) for label in distil_trec.LABELS]
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(questions))
    blocks(prose(4_000), tokenizer, 32).remove_columns("labels").save_to_disk(str(tmp_path / "corpus"))
    words = ["--teacher", "tuned", "--base", "base", "--corpus", "corpus", "--out", "out", "--data", "."]
    words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    for _ in range(2):
        distil_trec.main([*words, "--epochs", "1", "--general", "2", "--seeds", "0"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " seed " in line]
    assert lines[:6] == lines[6:]
    assert [line[0] for line in lines[:6]] == ["plain", "one", "two", "three", "base-two", "general-two"]
    assert len(json.loads((tmp_path / "out" / "three-0" / "result.json").read_text())) == 2
    assert (tmp_path / "out" / "three-0" / "03-logits").is_dir()
