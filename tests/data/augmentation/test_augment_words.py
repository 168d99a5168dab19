"""Which words change, into what, and how copies are drawn."""

from __future__ import annotations

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_stages.data import Augment
from tests.data.augmentation.tiny_models import (
    SIZES,
    TEXTS,
    WORDS,
    bert,
    data,
    of,
    predicted,
    words,
)


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
