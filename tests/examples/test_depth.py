"""The examples of recurrent depth: what they teach is right, and what they measure is measured at every depth."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from transformers import LlamaForCausalLM

import recurrent_stories
import running_sums
from hf_stages.data.sample_text import byte_tokenizer
from hf_stages.layers import find_recurrence
from hf_stages.transforms import MakeRecurrent
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


def test_each_bit_is_labelled_with_the_sum_up_to_it():
    rows = running_sums.sums(50, 6, seed=3)
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"]) == 7
        assert row["labels"][0] == -100  # a Llama is asked at position i for the label at i + 1
        assert row["labels"][1:] == [sum(row["input_ids"][: end + 1]) % 2 for end in range(6)]
    assert {bit for row in rows for bit in row["input_ids"]} == {0, 1}
    assert rows[:] == running_sums.sums(50, 6, seed=3)[:]
    assert rows[:] != running_sums.sums(50, 6, seed=4)[:]


class _Oracle(LlamaForCausalLM):
    """Gives at each place the true sum, up to as many bits as its core runs cycles."""

    def forward(self, input_ids, **kwargs):
        out = super().forward(input_ids=input_ids, **kwargs)
        reach = find_recurrence(self).depth
        right = input_ids.cumsum(1) % 2
        right[:, reach:] = 1 - right[:, reach:]
        out.logits = out.logits.new_zeros(*input_ids.shape, 2).scatter(2, right[..., None], 1.0)
        return out


def test_answers_are_counted_by_depth_and_position():
    model = MakeRecurrent(0, 2, 0, mean_depth=2)(tiny.llama(vocab_size=2, pad_token_id=None))
    model.__class__ = _Oracle
    found = running_sums.right_answers(model, running_sums.sums(5, 8, seed=0), group=2, depths=(1, 4, 16))
    assert found == {1: [0.5, 0, 0, 0], 4: [1, 1, 0, 0], 16: [1, 1, 1, 1]}


def test_sums_are_learned_and_shown(tmp_path):
    found = running_sums.main(tmp_path, steps=3, asked=16)
    lines = running_sums.table(found).splitlines()
    assert [line.split()[1] for line in lines[1:]] == [str(depth) for depth in running_sums.DEPTHS]
    assert "29-32" in lines[0]
    assert all(len(shares) == 8 for shares in found.values())


def test_stories_are_trained_once_and_measured_at_every_depth(tmp_path, capsys):
    config = {**tiny.llama_config().to_dict(), "vocab_size": 258, "num_hidden_layers": 5}
    LlamaForCausalLM(type(tiny.llama_config()).from_dict(config)).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with gzip.open(tmp_path / "text.gz", "wt") as file:
        file.write("\n".join(f"{number} was here, and {number} went." for number in range(40)))
    places = {"--model": "model", "--data": "text.gz", "--out": "out"}
    words = [word for flag, name in places.items() for word in (flag, str(tmp_path / name))]
    words += ["--updates", "2", "--length", "16", "--batch", "2", "--seeds", "0", "--runs", "tuned", "ternary"]
    recurrent_stories.main(words)
    trained = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("out/*/0*/model.safetensors"))]
    recurrent_stories.main([*words, "--test", "--pack"])
    assert len(trained) == 2
    assert trained == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("out/*/0*/model.safetensors"))]
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if re.match(r"\d+ KiB, .* at 1, \d+ at 4, \d+ at 8", line)]) == 1
    lines = [line.split() for line in said if " seed " in line]
    assert [line[3] for line in lines] == ["dev", "dev", "test", "test"]
    assert len(set(lines[0][4:])) == 1  # without a core, every depth is the same
    found = json.loads((tmp_path / "out" / "ternary-0.001-0" / "test.json").read_text())
    assert [f"{found[f'eval_ppl_at_{depth}']:.3f}" for depth in recurrent_stories.DEPTHS] == lines[3][4:]
