"""llama.cpp itself reads what was written: its tokens and its logits beside transformers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_stages.packing.formats import Gguf
from hf_stages.transforms import Binarize, SplitTernary, Ternarize
from tests.packing.formats.folders import TEXT, byte_level, loaded, sentencepiece, trained, word_piece
from tests.support import tiny

pytest.importorskip("gguf", reason="the GGUF exporter needs gguf: pip install 'hf_stages[gguf]'")
llama_cpp = pytest.importorskip(
    "llama_cpp", reason="to read GGUF by llama.cpp: pip install llama-cpp-python (compiles)"
)
pytestmark = pytest.mark.usefixtures("quick_gc")

WIDE = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
F32 = 0
RUNS = {
    # How far off, of the largest logit. Eight bits of activations by blocks of their own are what remains.
    "fp32": ([Ternarize(activations=None), SplitTernary()], sentencepiece, {"attention_bias": True}, 1e-5),
    "tq2_0": (
        [Ternarize(["layers", "embed_tokens", "lm_head"], activations=None)],
        sentencepiece,
        {"tie_word_embeddings": True},
        5e-2,
    ),
    "q1_0": ([Binarize(activations=None)], byte_level, {"rope_parameters": None}, 5e-2),
}
ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def opened(file, **options):
    return llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, verbose=False, type_k=F32, type_v=F32, **options)


@pytest.mark.parametrize("name", RUNS)
def test_llama_cpp_gives_the_logits_of_a_llama(name, tmp_path):
    transforms, tokenizer, config, bound = RUNS[name]
    if "rope_parameters" in config:
        config = {"rope_parameters": {**ROPE, "original_max_position_embeddings": 16}}
    own = tokenizer()
    folder = trained(tmp_path / "run", tiny.llama(**WIDE, **config), transforms, tokenizer=own)
    model = opened(Gguf(rest="float32")(folder, tmp_path).file, logits_all=True)
    for text in (TEXT, "that hat, ünder\n", "12 cats  "):
        assert model.tokenize(text.encode(), add_bos=True) == own(text)["input_ids"]
    ids = own(TEXT)["input_ids"][:40]
    model.eval(ids)
    got = np.array(model.scores[: len(ids)])
    with torch.no_grad():
        want = loaded(folder)(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


def test_llama_cpp_gives_the_scores_of_a_classifier(tmp_path):
    config = {"hidden_size": 256, "intermediate_size": 512, "hidden_act": "gelu_new"}
    own, transforms = word_piece(), [Binarize(activations=None)]
    folder = trained(tmp_path / "run", tiny.bert(**config), transforms, tokenizer=own)
    model = opened(Gguf()(folder, tmp_path).file, embedding=True)
    text = "The cats eat mats"
    assert model.tokenize(text.encode(), special=True) == own(text)["input_ids"]
    got = np.array(model.embed(text)[:3])
    with torch.no_grad():
        want = loaded(folder)(**own(text, return_tensors="pt", return_token_type_ids=False)).logits[0].numpy()
    assert np.abs(got - want).max() <= 5e-2 * np.abs(want).max()
