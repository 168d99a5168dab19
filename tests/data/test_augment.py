"""Augment: which words change, into what, how copies are drawn, and what is kept on disk."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_stages import recipes
from hf_stages.data import Augment, Source
from hf_stages.data.augmentation import language_model
from tests.support.tiny import llama

NAMES = "cat dog bird fish horse runs sleeps eats jumps house tree river road red green blue small old snow ice"
WORDS = NAMES.split()
PIECES = [*WORDS, "the", "not", "under", "##board", "##ing", "[unused1]", "!", ",", "7", "x"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["The old cat sleeps under the red tree!", "A DOG, not 7 fish, jumps.", "Snowboard the river", "the cat runs"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def wordpieces(**more) -> PreTrainedTokenizerFast:
    vocab = {piece: number for number, piece in enumerate([*SPECIAL, *PIECES])}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{**named, "mask_token": "[MASK]", **more})


def bert(kind=BertForMaskedLM, vocab: int = len(SPECIAL) + len(PIECES)) -> BertForMaskedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Weights as large as these make predictions depend on their context.
        return kind(BertConfig(vocab_size=vocab, max_position_embeddings=64, initializer_range=0.5, **SIZES)).eval()


def padded_by(token: int) -> BertForMaskedLM:
    model = bert()
    model.config.pad_token_id = token
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return wordpieces()


@pytest.fixture(scope="module")
def model():
    return bert()


@pytest.fixture(scope="module")
def make(model, tokenizer):
    """``make(**settings)``: augmentation with the tiny model, of a column ``text``."""
    return lambda **settings: Augment(model, **{"tokenizer": tokenizer, "text": "text", "n": 4, **settings})


def data(texts=TEXTS, **more) -> Dataset:
    columns = {"label": [i % 3 for i in range(len(texts))], "id": [f"row {i}" for i in range(len(texts))]}
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("text", *more, "id")} | {"label": datasets.ClassLabel(3)}
    )
    return Dataset.from_dict({"text": list(texts), **more, **columns}, features=features)


def of(result: Dataset, number: int, column: str = "text") -> list[str]:
    return [row[column] for row in result if row["id"] == f"row {number}"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def predicted(model, tokenizer, *texts: str, column: int, word: str, k: int) -> set[str]:
    """The reference: mask the word, look at the logits of the whole text, take the best k of the words allowed."""
    ids = tokenizer(*texts, return_tensors="pt")
    own = tokenizer.convert_tokens_to_ids(word)
    at = [i for i, s in enumerate(ids.sequence_ids(0)) if s == column and ids["input_ids"][0, i] == own]
    ids["input_ids"][0, at[0]] = tokenizer.mask_token_id
    with torch.no_grad():
        logits = model(**ids).logits[0, at[0]]
    ranked = [piece for _, piece in sorted(zip((-logits).tolist(), [*SPECIAL, *PIECES], strict=True))]
    return set([piece for piece in ranked if piece in WORDS and piece != word][:k])


def test_words_become_the_models_own_predictions(make, model, tokenizer):
    result = make(n=60, p=1.0, k=3, originals=False)(data(["the cat runs", "the small bird sleeps under a tree"]))
    for number, (text, places) in enumerate(
        {"the cat runs": [1, 2], "the small bird sleeps under a tree": [2, 6]}.items()
    ):
        for at in places:
            seen = {words(new)[at] for new in of(result, number)}
            assert seen == predicted(model, tokenizer, text, column=0, word=words(text)[at], k=3)


def test_a_pairs_texts_are_each_others_context_and_are_drawn_apart(make, model, tokenizer):
    first, second = "the red cat runs", "the old dog eats a fish"
    pair = data([first], other=[second])
    result = make(text=("text", "other"), n=80, p=1.0, k=2, originals=False)(pair)
    assert {words(t)[2] for t in result["text"]} == predicted(
        model, tokenizer, first, second, column=0, word="cat", k=2
    )
    seen = {words(t)[5] for t in result["other"]}
    assert seen == predicted(model, tokenizer, first, second, column=1, word="fish", k=2)
    assert seen != predicted(model, tokenizer, second, column=0, word="fish", k=2)  # alone, it would be others

    half = make(text=("text", "other"), n=80)(pair)
    both = set(zip(half["text"], half["other"], strict=True))
    assert (first, second) in both
    assert len({a for a, _ in both}) > 20
    assert len({b for _, b in both}) > 20
    # Drawn from the original second text, whatever happened to the first: each of its words still stands in about 60 %.
    kept = sum(words(b)[5] == "fish" for b in half["other"]) / len(half)
    assert 0.4 < kept < 0.8
    changed = [(words(a)[1] != "red", words(b)[1] != "old") for a, b in zip(half["text"], half["other"], strict=True)]
    assert {(True, True), (True, False), (False, True), (False, False)} == set(changed)


def test_what_stays(make):
    """Stopwords, numbers, punctuation, spacing and capitals; and a candidate is always another whole word."""
    result = make(n=40, p=1.0)(data())
    for number, text in enumerate(TEXTS):
        original, *new = of(result, number)
        assert original == text
        assert len(new) > 5
        for copy in new:
            assert re.sub(r"[^\W\d_]{2,}", "", copy) == re.sub(r"[^\W\d_]{2,}", "", text)
            for old, now in zip(words(text), words(copy), strict=True):
                if old.lower() in ("the", "not", "under", "a", "7") or not old.isalpha():
                    assert now == old
                else:
                    assert now.lower() in WORDS
                    assert now.lower() != old.lower()
                    assert (now.isupper(), now.istitle()) == (old.isupper(), old.istitle())


def test_probability_and_number_of_copies(make):
    text = " ".join(WORDS)
    result = make(n=50, p=0.25, originals=False)(data([text]))
    assert len(result) == 50
    share = sum(a != b for copy in result["text"] for a, b in zip(WORDS, words(copy), strict=True)) / (50 * len(WORDS))
    assert 0.2 < share < 0.3
    assert len(make(n=1000, p=0.5, k=1)(data(["the cat runs"]))) == 4  # the original, and three that differ
    few, many = (of(make(n=n)(data()), 0) for n in (3, 9))
    assert many[: len(few)] == few
    assert len(few) > 2


def test_labels_and_other_columns_are_copied(make):
    rows = data()
    result = make()(rows)
    assert result.features == rows.features
    assert result.column_names == rows.column_names
    assert len(result) > 2 * len(rows)
    assert all(row["label"] == int(row["id"][-1]) % 3 for row in result)


def test_a_row_gives_the_same_copies_wherever_it_stands(make):
    rows = data([*TEXTS, TEXTS[0]])
    result = make()(rows)
    assert result["text"][:] == make()(rows)["text"][:]
    few = {"k": 2, "n": 9}  # of 15 among 20 words, a wrong one would hardly show
    assert make(**few)(rows)["text"][:] == make(**few, batch_size=1)(rows)["text"][:]
    assert result["text"][:] != make(seed=1)(rows)["text"][:]
    moved = make()(rows.select([3, 1, 0]))
    assert [of(moved, i) for i in (0, 1, 3)] == [of(result, i) for i in (0, 1, 3)]
    assert of(result, 0) != of(result, 4)  # the same text again is drawn anew


def test_chunks_do_not_show(make, monkeypatch):
    before = make()(data())["text"][:]
    monkeypatch.setattr("hf_stages.data.augmentation._copies._CHUNK", 2)
    assert make()(data())["text"][:] == before


def test_global_randomness_and_the_model_are_left_as_they_were(make, model):
    model.train()
    state = torch.get_rng_state()
    trained = make()(data())["text"][:]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.get_output_embeddings()._forward_pre_hooks
    model.eval()
    assert make()(data())["text"][:] == trained


def test_a_word_of_several_pieces_becomes_its_neighbours(tokenizer):
    model, at = bert(), tokenizer.convert_tokens_to_ids
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        mean = (table[at("snow")] + table[at("##board")]) / 2
        table[at("river")], table[at("horse")] = 3 * mean, mean + 0.1 * table[at("cat")]
    augment = Augment(model, tokenizer=tokenizer, text="text", n=30, p=1.0, k=3, originals=False)
    seen = set(augment(data(["not a Snowboard"]))["text"])
    assert {"not a River", "not a Horse"} < seen
    assert len(seen) == 3
    assert "not a Snow" not in seen  # its own piece, near by construction


def test_embeddings_alone_never_run_the_model(tokenizer, monkeypatch):
    encoder = bert(BertModel)
    table = torch.nn.functional.normalize(encoder.get_input_embeddings().weight.detach(), dim=-1)
    own, *near = (table[[tokenizer.convert_tokens_to_ids(w) for w in ["cat", *WORDS]]] @ table[5]).tolist()
    assert own == pytest.approx(1)
    best = {w for _, w in sorted(zip(near, WORDS, strict=True), reverse=True)[1:4]}
    monkeypatch.setattr(BertModel, "forward", lambda *_, **__: pytest.fail("the model ran"))
    how = {"tokenizer": tokenizer, "text": "text", "method": "embeddings"}
    result = Augment(encoder, n=60, p=1.0, k=3, originals=False, **how)(data(["the cat"]))
    assert {words(text)[1] for text in result["text"]} == best


def test_vectors_from_a_file(make, tmp_path, monkeypatch):
    path = tmp_path / "vectors.txt"
    path.write_text("5 2\nsnowboard 1 0\nskates 0.9 0.1\nsled 0.8 0.3\nthe 1 0\nwhale -1 0\n")
    result = make(vectors=path, n=40, p=1.0, k=2)(data(["not a Snowboard or zebra"]))
    assert set(result["text"]) == {f"not a {word} or zebra" for word in ("Snowboard", "Skates", "Sled")}
    alone = Augment(vectors=path, method="embeddings", text="text", n=9, p=1.0, k=1)(data(["a whale"]))
    assert alone["text"][:] == ["a whale", "a sled"]
    path.write_text("snowboard 1 0\nskates 1\n")
    with pytest.raises(ValueError, match="equally many numbers on every line"):
        make(vectors=path)(data())


def test_words_behind_max_length_become_neighbours(make):
    text = "the cat runs " + "the " * 20 + "dog"
    result = make(max_length=8, n=30, p=1.0)(data([text]))
    assert all(words(new)[-1] in WORDS and words(new)[-1] != "dog" for new in of(result, 0)[1:])


def test_byte_level_bpe(tmp_path):
    """RoBERTa's pieces carry their space: the first word of a text has others than those behind it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    corpus = [f"{a} {b} {c}ing" for a in WORDS for b in WORDS for c in WORDS]
    raw.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, special, strict=True)),
    )
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=40, initializer_range=0.5, **SIZES)
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    long = "tree " * 50
    result = Augment(str(tmp_path), text="text", n=60, p=1.0, k=4)(data(["cat sleeps (dog)", "Birds red", long]))
    # Pieces with their space; not those that only go on a word, such as the end of "birds". (Beginnings pass: "bir".)
    known = {text.strip() for text in tokenizer.batch_decode([[i] for i in range(5, len(tokenizer))])}
    whole = {text for text in known if len(tokenizer(f"a {text}")["input_ids"]) == 4}
    assert {"cat", "dog", "bird"} <= whole
    assert "ing" in known - whole
    for number, place in ((0, 0), (0, 1), (0, 3), (1, 1)):
        seen = {words(new)[place].lower() for new in of(result, number)[1:]}
        assert len(seen) >= 3
        assert seen <= whole
    assert all(re.fullmatch(r"\w+ \w+ \(\w+\)", new) for new in of(result, 0))
    assert "tree" not in words(of(result, 2)[1])


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0}, "p: expected a probability above 0 and at most 1, got 0"),
        ({"p": 1.5}, "p: expected a probability"),
        ({"n": 0}, "n: expected a whole number of at least 1, got 0"),
        ({"k": True}, "k: expected a whole number"),
        ({"method": "glove"}, "method: expected 'mlm' or 'embeddings', got 'glove'"),
        ({"text": ("a", "b", "c")}, "text: expected a column or a pair of columns"),
        ({"stopwords": "the"}, "stopwords: expected a list of words"),
        ({"tokenizer": None}, "tokenizer: missing; a model that is loaded already"),
        ({"model": None}, "model: missing; give a masked language model"),
        ({"model": None, "method": "embeddings"}, "model: missing"),
    ],
)
def test_refuses_settings(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**{"model": model, "tokenizer": tokenizer, "text": "text", **settings})


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (data([]), {}, "the dataset has no rows"),
        (data(), {"text": "question"}, "there is no column 'question'; there are text, label, id"),
        (data(), {"text": None}, "text: missing; name the column of text"),
        (data(), {"text": "label"}, "'label' holds int64, expected text"),
        (Dataset.from_dict({"input_ids": [[1]]}), {}, "there are input_ids; it is tokenized already"),
        (data().add_column("input_ids", [[1]] * 4), {}, "input_ids would be copied as they are, of the original text"),
        (data([*TEXTS, None]), {}, "row 4: 'text' is empty (None)"),
        (data().to_iterable_dataset(), {}, "expected a datasets.Dataset, got IterableDataset"),
        (datasets.DatasetDict(train=data()), {}, "got DatasetDict; give one of its splits"),
        (data(["the", "7"]), {"originals": False}, "no new example came out: no word has a candidate"),
        (data(), {"vectors": "nowhere.txt"}, "vectors: there is no file nowhere.txt"),
    ],
)
def test_refuses_data(make, rows, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**settings)(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"tokenizer": wordpieces(mask_token=None)}, "has no mask token"),
        (lambda: {"model": padded_by(3)}, "padding is token 0 of the tokenizer, 3 of the model"),
        (lambda: {"model": bert(BertModel)}, "BertModel does not predict masked tokens"),
        (lambda: {"model": llama()}, "LlamaForCausalLM does not predict masked tokens"),
        (lambda: {"model": bert(vocab=20)}, f"the tokenizer has {len(SPECIAL) + len(PIECES)} tokens, the model 20"),
        (lambda: {"stopwords": [*WORDS, "the", "not", "under"]}, "none of its pieces is a whole word"),
    ],
)
def test_refuses_models(model, tokenizer, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**{"model": model, "tokenizer": tokenizer, "text": "text", **change()})(data())


def test_refuses_a_checkpoint_whose_head_would_be_random(tmp_path, tokenizer):
    bert(BertModel).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no masked-LM head \(cls\.predictions\..* would be random\)"):
        Augment(str(tmp_path), text="text")(data())
    assert len(Augment(str(tmp_path), text="text", method="embeddings")(data())) > 4


RECIPE = """
sources:
  rows: {path: json, data_files: rows.jsonl, text: text, label: label, augment: {use: Augment, model: mlm, n: 3, cache: kept}}
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
