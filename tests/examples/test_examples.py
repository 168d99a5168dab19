"""The examples: the text is real, deterministic and split by file; the demo runs to its table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import augment_text
import cached_teacher
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


@each_example
def test_an_example_leaves_the_path_alone(path: Path) -> None:
    assert "sys.path" not in path.read_text(encoding="utf-8")


@each_example
def test_an_example_says_what_it_does_and_numbers_its_steps(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if not any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
        return  # what examples share
    numbers = [int(n) for n in re.findall(r"^ +# (\d+)\. [A-Z].*\.$", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert len(numbers) > 1
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("text", [prose, code])
def test_text_is_deterministic_and_bounded(text) -> None:
    first = text(20_000, seed=1)
    assert first["text"][:] == text(20_000, seed=1)["text"][:]
    assert first["text"][:] != text(20_000, seed=2)["text"][:]
    assert 19_000 < sum(len(t.encode()) for t in first["text"]) <= 20_000


@pytest.mark.parametrize("text", [prose, code])
def test_eval_files_are_unseen_in_training(text) -> None:
    train, held_out = (text(200_000, split=split)["text"] for split in ("train", "eval"))
    assert train[:]
    assert held_out[:]
    assert not set(train) & set(held_out)


def test_tokenizer_is_one_token_per_byte_and_survives_saving(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "  naïve\n\tdef f(x): return '世界'  "
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (258, 0, 1)


def test_blocks_are_full_and_in_order() -> None:
    tokenizer = byte_tokenizer()
    data = blocks(prose(5_000), tokenizer, 64)
    assert {len(row) for row in data["input_ids"]} == {64}
    assert data["labels"][:] == data["input_ids"][:]
    assert prose(5_000)["text"][0].startswith(tokenizer.decode(data["input_ids"][0]))


def test_demo_is_cut_resumed_and_shown(run_example, tmp_path: Path) -> None:
    printed = run_example("demo", "--steps", "6", "--out", "out")
    assert "cut on purpose after 9 updates" in printed
    for folder in ("01-language", "02-code"):
        assert folder in printed.rsplit("after stage", 1)[1]
        assert (tmp_path / "out" / folder / "config.json").exists()


def test_a_cache_teaches_as_the_live_teacher(tmp_path: Path, capsys) -> None:
    cached_teacher.main(tmp_path / "out", 3, 8_000)
    printed = capsys.readouterr().out
    table = printed.rsplit("taught by", 1)[1]
    apart = {line[:22].strip(): float(line.split()[-1]) for line in table.splitlines()[1:] if line.strip()}
    assert apart["live"] == 0
    assert apart["all logits"] < 1e-5
    assert apart["16 logits, bfloat16"] > apart["all logits"]
    assert "k=16 of 258 logits, probability mass kept: mean " in printed


def test_sentences_become_more_of_them(tmp_path: Path, capsys) -> None:
    data, more = augment_text.main(tmp_path, 5, 300_000)
    assert data["text"][0] in capsys.readouterr().out.splitlines()
    assert len(data) < len(more) <= 6 * len(data)
    assert set(data["text"]) < set(more["text"])
    assert set(more["length"]) <= set(data["length"])
    assert (tmp_path / "augmented" / more._fingerprint / "state.json").is_file()


@pytest.mark.slow
def test_mixture_ramp_shows_what_it_drew(run_example, tmp_path: Path) -> None:
    printed = run_example("mixture_ramp", "--steps", "8", "--out", "out")
    assert "progress  code declared  realized" in printed
    assert "code: 22 examples, 2816 tokens" in printed  # of 64: the integral of Linear(0, 0.7) is 22.4
    assert list((tmp_path / "out" / "orders").glob("*.npy"))
