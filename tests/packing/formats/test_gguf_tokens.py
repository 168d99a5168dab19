"""Tokenizers in GGUF: llama.cpp's ways of cutting text, in a few lines, give transformers' tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import transformers as tf
from tokenizers import normalizers

from tests.packing.formats.folders import TEXT, byte_level, sentencepiece, word_piece

gguf = pytest.importorskip("gguf", reason="the GGUF exporter needs gguf: pip install 'hf_stages[gguf]'")

from hf_stages.packing.formats.gguf_tokens import SPLITS, write_tokens  # noqa: E402


@pytest.fixture
def written(tmp_path):
    """``written(tokenizer, size)``: the file's fields, and the notes."""

    def write(tokenizer, size, arch="llama", pre=None):
        folder = None
        if tokenizer is not None:
            folder = tmp_path / "folder"
            tokenizer.save_pretrained(folder)
        file = tmp_path / "tokens.gguf"
        writer = gguf.GGUFWriter(file, arch)
        notes = write_tokens(writer, folder, size, arch, pre)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        fields = {name: found.contents() for name, found in gguf.GGUFReader(file).fields.items()}
        return {name.removeprefix("tokenizer."): value for name, value in fields.items()}, notes

    return write


def joined_by_score(text, tokens, scores):
    """SentencePiece as llama.cpp has it: again and again join the neighbours that make the best token."""
    ids = {token: i for i, token in enumerate(tokens)}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    found = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def test_a_sentencepiece_tokenizer_is_written(written):
    tokenizer = sentencepiece()
    fields, notes = written(tokenizer, 310)
    assert (fields["ggml.model"], notes) == ("llama", [])
    tokens, types = fields["ggml.tokens"], fields["ggml.token_type"]
    assert len(tokens) == 310
    assert tokens[309] == "[PAD309]"
    assert types[309] == gguf.TokenType.UNUSED
    assert types[:4] == [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, gguf.TokenType.BYTE]
    for text in (TEXT, "that hat, ünder", "a  b\n"):
        assert [1, *joined_by_score(text, tokens, fields["ggml.scores"])] == tokenizer(text)["input_ids"]
    assert (fields["ggml.bos_token_id"], fields["ggml.eos_token_id"], fields["ggml.unknown_token_id"]) == (1, 2, 0)
    assert (fields["ggml.add_bos_token"], fields["ggml.add_eos_token"]) == (True, False)
    assert fields["ggml.add_space_prefix"]


def test_a_byte_level_tokenizer_is_written(written, tmp_path):
    tokenizer = byte_level()
    fields, notes = written(tokenizer, 291)
    assert (fields["ggml.model"], fields["ggml.pre"], notes) == ("gpt2", "gpt-2", [])
    assert fields["ggml.token_type"][290] == gguf.TokenType.USER_DEFINED
    assert not fields["ggml.add_bos_token"]
    assert "ggml.bos_token_id" not in fields
    for split, name in SPLITS.items():
        assert written(byte_level(split), 291)[0]["ggml.pre"] == name
    with pytest.raises(ValueError, match="pre: expected to know how"):
        written(byte_level(r"\d+"), 291)
    assert written(byte_level(r"\d+"), 291, pre="smollm")[0]["ggml.pre"] == "smollm"


def test_a_tokenizer_of_bytes_alone_needs_no_pattern(written):
    from hf_stages.data.sample_text import byte_tokenizer

    fields, _ = written(byte_tokenizer(), 258)
    assert fields["ggml.pre"] == "gpt-2"
    assert len(fields["ggml.merges"]) == 1
    assert not set(fields["ggml.merges"][0]) - {" "} & set("".join(fields["ggml.tokens"]))


def test_a_word_piece_tokenizer_is_written(written):
    fields, notes = written(word_piece(), 12, arch="bert")
    assert fields["ggml.tokens"][2:12] == [
        *["[CLS]", "[SEP]", "[MASK]", "▁the", "▁cat", "s", "▁mat", "▁e", "at", "[PAD11]"]
    ]
    names = {"bos": 2, "seperator": 3, "mask": 4, "padding": 0, "unknown": 1}
    assert {name: fields[f"ggml.{name}_token_id"] for name in names} == names
    assert notes == []
    options = {(True, None): (True, True), (False, None): (False, False), (True, False): (True, False)}
    for (lowercase, accents), want in options.items():
        tokenizer = word_piece()
        tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
        fields, _ = written(tokenizer, 12, arch="bert")
        assert (fields["ggml.normalizer.lowercase"], fields["ggml.normalizer.strip_accents"]) == want


def test_tokenizers_that_llama_cpp_lacks_are_refused(written):
    assert written(None, 5)[0]["ggml.model"] == "no_vocab"
    with pytest.raises(ValueError, match="expected WordPiece for bert, got BPE"):
        written(byte_level(), 291, arch="bert")
    with pytest.raises(ValueError, match="expected ids below 100"):
        written(byte_level(), 100)
    from tokenizers import Tokenizer, models

    words = tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="got WordLevel; tokenizer=False"):
        written(words, 5)
