import json

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_stages.data.source import Source

ROWS = [{"a": "x y z", "b": "y", "stars": "good", "n": 1}, {"a": "z", "b": "x", "stars": "bad", "n": 2}]
ROWS += [{"a": "y z", "b": "z", "stars": "good", "n": 3}]


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {"[PAD]": 0, "[END]": 1, "x": 2, "y": 3, "z": 4, "[UNK]": 5}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", eos_token="[END]", unk_token="[UNK]")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_and_labels(file, tokenizer, streaming):
    source = Source("json", data_files=file, text="a", label="n", max_length=2, streaming=streaming)
    data = source.load(tokenizer)
    assert isinstance(data, datasets.IterableDataset if streaming else datasets.Dataset)
    rows = list(data)
    assert [row["input_ids"] for row in rows] == [[2, 3], [4], [3, 4]]
    assert [row["labels"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) == {"input_ids", "attention_mask", "token_type_ids", "labels"} & set(rows[0])


@pytest.mark.parametrize("streaming", [False, True])
def test_blocks(file, tokenizer, streaming):
    data = Source("json", data_files=file, text="a", chunk=True, max_length=4, streaming=streaming).load(tokenizer)
    assert list(data) == [{"input_ids": [2, 3, 4, 1]}, {"input_ids": [4, 1, 3, 4]}]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_limit_rename_keep(file, tokenizer, streaming):
    source = Source(
        "json", data_files=file, text=["q", "b"], rename={"a": "q"}, limit=2, keep=["n"], streaming=streaming
    )
    rows = list(source.load(tokenizer))
    assert [row["input_ids"] for row in rows] == [[2, 3, 4, 3], [4, 2]]
    assert [row["n"] for row in rows] == [1, 2]


def test_text_labels_are_numbered_in_sorted_order(file):
    data = Source("json", data_files=file, label="stars").load()
    assert data["labels"][:] == [1, 0, 1]
    assert data.features["labels"].names == ["bad", "good"]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_fix_the_numbers(file, streaming):
    source = Source("json", data_files=file, label="stars", classes=["good", "so", "bad"], streaming=streaming)
    assert [row["labels"] for row in source.load()] == [0, 2, 0]


def test_fingerprint_is_that_of_content(file, tokenizer):
    source = Source("json", data_files=file, text="a")
    first = source.load(tokenizer)._fingerprint
    tokenizer(["x y"], padding="max_length", max_length=7, truncation=True)  # leaves state in the tokenizer
    assert source.load(tokenizer)._fingerprint == first
    assert Source("json", data_files=file, text="b").load(tokenizer)._fingerprint != first


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_folders(tmp_path, streaming):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "dev": data.select([1])}).save_to_disk(tmp_path / "many")
    assert [r["n"] for r in Source(str(tmp_path / "one"), streaming=streaming).load()] == [1, 2, 3]
    assert [r["n"] for r in Source(str(tmp_path / "many"), split="dev", streaming=streaming).load()] == [2]
    with pytest.raises(ValueError, match="there is no split 'test'; there are train, dev"):
        Source(str(tmp_path / "many"), split="test").load()


def test_plain_folder_and_text_files(tmp_path, tokenizer):
    (tmp_path / "lines.txt").write_text("x\ny z\n")
    data = Source("text", data_files=["lines.txt"], text="text").resolve(tmp_path).load(tokenizer)
    assert [row["input_ids"] for row in data] == [[2], [3, 4]]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.csv").write_text("a,n\nx,1\n")
    assert list(Source("folder").resolve(tmp_path).load()) == [{"a": "x", "n": 1}]


def test_resolve_leaves_the_rest(tmp_path):
    source = Source("imdb", data_files={"train": ["a.csv", "https://h/b.csv"]}, split="train")
    assert source.resolve(tmp_path).path == "imdb"
    assert source.resolve(tmp_path).data_files == {"train": (str(tmp_path / "a.csv"), "https://h/b.csv")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "c"}, r"there is no column 'c'; there are a, b, stars, n"),
        ({"label": "c"}, "there is no column 'c'"),
        ({"rename": {"c": "d"}}, "there is no column 'c'"),
        ({"label": "stars", "streaming": True}, "text labels of a stream need their names"),
        ({"label": "stars", "classes": ("good",)}, r"unknown labels \['bad'\]"),
        ({"label": "stars", "rename": {"n": "labels"}}, "cannot become 'labels'"),
        ({"text": "a", "chunk": True, "max_length": 99}, "shorter than one block of 99 tokens"),
        ({"split": "dev"}, "cannot load"),
    ],
)
def test_refuses(file, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        Source("json", data_files=file, **options).load(tokenizer)


@pytest.mark.parametrize("streaming", [False, True])
def test_empty(tmp_path, streaming):
    datasets.Dataset.from_dict({"a": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="split 'train': it has no examples"):
        Source(str(tmp_path / "empty"), streaming=streaming).load()
    (tmp_path / "empty.csv").write_text("a,n\n")
    with pytest.raises(ValueError, match=r"it has no examples|corresponds to no data"):
        Source("csv", data_files=str(tmp_path / "empty.csv"), streaming=streaming).load()


def test_needs_a_tokenizer(file):
    with pytest.raises(ValueError, match="'a' is to be tokenized, but no tokenizer was given"):
        Source("json", data_files=file, text="a").load()


def test_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"no such folder here, .* needs the network .* or give a local path"):
        Source("nobody/nothing").load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "json"}, "data_files: missing; json reads files"),
        ({"path": ""}, "path: expected a Hub name"),
        ({"path": "x", "limit": 0}, "limit: expected a whole number of at least 1, got 0"),
        ({"path": "x", "max_length": "9"}, "max_length: expected a whole number"),
        ({"path": "x", "text": ["a", "b", "c"]}, "expected a column or a pair"),
        ({"path": "x", "chunk": True}, "chunk: expected text to name one column"),
    ],
)
def test_refuses_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Source(**options)
