"""Copies on disk are made once and found again; a preview, and a recipe's source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset

from hf_stages import recipes
from hf_stages.data import Augment, Source
from hf_stages.data.augmentation import language_model
from tests.data.augmentation.tiny_models import (
    TEXTS,
    bert,
    data,
    of,
)


def test_the_cache_is_made_once(make, tmp_path, monkeypatch):
    augment = make(cache=tmp_path / "kept")
    first = augment(data())
    assert first["text"][:] == make()(data())["text"][:]
    load = language_model.load
    monkeypatch.setattr(language_model, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    again = augment(data())
    assert again["text"][:] == first["text"][:]
    assert again._fingerprint == first._fingerprint
    (folder,) = [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]
    assert folder.name == first._fingerprint
    assert datasets.load_from_disk(str(folder))["text"][:] == first["text"][:]
    monkeypatch.setattr(language_model, "load", load)
    file = next(folder.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-40])
    assert augment(data())["text"][:] == first["text"][:]  # damaged, so made anew


@pytest.mark.parametrize(
    "change",
    [{"p": 0.5}, {"n": 5}, {"k": 2}, {"seed": 1}, {"stopwords": ["cat"]}, {"originals": False}, {"max_length": 9}],
)
def test_other_settings_are_kept_apart(make, tmp_path, change):
    cache = {"cache": tmp_path}
    first = make(**cache)(data(TEXTS[:1]))
    assert make(**cache, batch_size=3)(data(TEXTS[:1]))._fingerprint == first._fingerprint
    assert make(**cache, **change)(data(TEXTS[:1]))._fingerprint != first._fingerprint
    assert make(**cache)(data(TEXTS[1:2]))._fingerprint != first._fingerprint


def test_a_folder_that_holds_other_weights_is_another_model(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    augment = Augment(tmp_path / "model", text="text", n=2, cache=tmp_path / "cache")
    prints = []
    for seed in range(2):
        model = bert()
        with torch.no_grad():
            model.get_input_embeddings().weight[5] += seed
        model.save_pretrained(tmp_path / "model")
        prints.append(augment(data())._fingerprint)
    assert prints[0] != prints[1]
    state = torch.get_rng_state()
    replace(augment, method="embeddings")(data())  # an encoder with a pooler, whose weights are drawn
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_one_leaves_nothing_that_counts(make, tmp_path, monkeypatch):
    def cut(self, folder, **_):
        Path(folder, "state.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Dataset, "save_to_disk", cut)
        with pytest.raises(KeyboardInterrupt):
            make(cache=tmp_path)(data())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(make(cache=tmp_path)(data())) > 4


def test_preview_shows_what_will_be_made(make):
    shown = make().preview(data(), rows=2).splitlines()
    full = make()(data())
    assert [line.strip() for line in shown] == [*of(full, 0), *of(full, 1)]
    assert shown[0] == TEXTS[0]
    assert shown[1].startswith("    ")


def test_the_count_is_told(make, caplog):
    result = make(n=30, k=1, p=0.5)(data(["the cat runs", "the 7"]))
    assert len(result) == 5
    assert (
        "Augment: 2 rows, 3 new (57 of 60 came out as others did or unchanged, and are left out): 5 in all"
        in caplog.text
    )


RECIPE = """
sources:
  rows: {path: json, data_files: rows.jsonl, text: text, label: label,
         augment: {use: Augment, model: mlm, n: 3, cache: kept}}
train_dataset: rows
stages: [{name: main, until: 1 epochs}]
"""


def test_a_recipes_source_is_augmented_before_it_is_tokenized(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    data().to_json("rows.jsonl")
    bert().save_pretrained("mlm")
    tokenizer.save_pretrained("mlm")
    Path("run.yaml").write_text(RECIPE)
    read = recipes.loads(RECIPE)
    assert recipes.loads(recipes.dump(read)) == read
    source = recipes.load("run.yaml").sources["rows"]
    assert source.augment.model == str(tmp_path / "mlm")
    loaded = source.load(tokenizer)
    made = Augment("mlm", text="text", n=3)(data())
    assert loaded["input_ids"][:] == tokenizer(made["text"][:])["input_ids"]
    assert loaded["labels"][:] == made["label"][:]
    monkeypatch.setattr(language_model, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert source.load(tokenizer)._fingerprint == loaded._fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streaming": True}, "augment: a stream has no rows by number"),
        ({"augment": Augment("m", text="a")}, "augment: cache: missing; say where to keep the rows"),
        ({"augment": "bert"}, "augment: expected {use: Augment, ...}, got 'bert'"),
        ({"text": None}, "augment: text: missing, here and in the source"),
    ],
)
def test_refuses_sources(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Source("folder", **{"text": "a", "augment": Augment("m", cache="c"), **settings})
