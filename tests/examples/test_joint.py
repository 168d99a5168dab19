"""The example of staged against joint on one's own text: what it reads, holds apart and compares."""

from __future__ import annotations

import gzip
import json

import pytest

import staged_or_joint
from staged_or_joint import main, pieces

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture
def files(tmp_path):
    """Text, gzipped text, JSON lines and a table of questions and answers."""
    (tmp_path / "prose.txt").write_text("".join(f"line {i} of the prose, as it stands\n" for i in range(1500)))
    with gzip.open(tmp_path / "code.py.gz", "wt") as file:
        file.writelines(f"    x{i} = {i}\n" for i in range(1500))
    rows = [json.dumps({"task": f"add {i}", "code": f"def f(x): return x + {i}", "n": i}) for i in range(60)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    (tmp_path / "calls.csv").write_text(
        "ask,tool\n" + "".join(f'"weather in {i}, please",Weather{i % 3}\n' for i in range(60))
    )
    return tmp_path


def test_files_are_read_as_they_stand(files):
    code = pieces(str(files / "code.py.gz"))
    assert code[0][0].splitlines()[:2] == ["    x0 = 0", "    x1 = 1"]
    assert len(code) == 30
    assert pieces(f"{files / 'tasks.jsonl'}:task,code")[1] == ("add 1", "def f(x): return x + 1")
    assert pieces(f"{files / 'calls.csv'}:ask,tool")[4] == ("weather in 4, please", "Weather1")


def arguments(files, *more):
    return [
        "--out", str(files / "out"), "--language", str(files / "prose.txt"), "--code", str(files / "code.py.gz"),
        f"{files / 'tasks.jsonl'}:task,code", "--tools", f"{files / 'calls.csv'}:ask,tool", "--size", "tiny",
        "--length", "32",
        "--shares", "0.4", "0.3", "0.3", "--rates", "6e-3", "1e-3", "1e-3", *more,
    ]  # fmt: skip


def test_every_tenth_piece_is_for_evaluation_and_answers_alone_are_learned(files, monkeypatch):
    monkeypatch.setattr(staged_or_joint, "LINES", 10)
    assert main(arguments(files, "--write-only")) == 0
    out = files / "out"
    tokenizer = staged_or_joint.AutoTokenizer.from_pretrained(out / "tokenizer")
    sets = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in out.glob("*.jsonl")}
    assert set(sets) == {"language", "code", "tools", "language-eval", "code-eval", "tools-eval"}
    held, seen = ("".join(tokenizer.decode(row["input_ids"]) for row in sets[name]) for name in ("code-eval", "code"))
    assert "x5 =" in held
    assert "x5 =" not in seen
    assert "x15 =" in seen
    assert {len(row["input_ids"]) for row in sets["language"]} == {32}
    row = sets["tools-eval"][1]
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned) == "Weather1<eos>"
    assert tokenizer.decode(row["input_ids"]) == "weather in 10, please\n=>\nWeather1<eos>"


def test_it_compares(files, capsys):
    few = ("--steps", "10", "--evaluate", "4", "--seeds", "0")
    assert main(arguments(files, *few, "--arms", "joint")) == 0
    shown = capsys.readouterr().out
    for name in ("language", "code", "tools"):
        assert f"{name}: loss" in shown
        assert f"{name}: accuracy" in shown


@pytest.mark.parametrize(
    "words",
    [["--language", "a.txt"], ["--tools", "a.csv"], ["--shares", "1", "--rates", "1e-3"], ["--rates", "1", "1", "1"]],
)
def test_mistakes_are_told(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "expected" in capsys.readouterr().err
