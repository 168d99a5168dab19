"""The layout that stock transformers reads: run in processes that never import hf_stages."""

from __future__ import annotations

import pytest
import torch

from hf_stages.packing import pack
from hf_stages.transforms import Binarize, InsertSubLN, SplitTernary, Ternarize
from tests.packing.models import TIED, gpt2, logits
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")
STOCK = """
import sys, torch, transformers
ids = torch.arange(12).reshape(2, 6)
try:  # the project's own layout stops where the package is missing
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
    sys.exit("loaded")
except ValueError as error:
    assert "`import hf_stages`" in str(error), error
for auto, folder, out in zip(*[iter(sys.argv[2:])] * 3):
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits = model(input_ids=ids, **more).logits
    packed = sum(p.numel() for p in model.parameters() if p.dtype in (torch.uint8, torch.int8))
    torch.save({"logits": logits, "packed": packed}, out)
assert "hf_stages" not in sys.modules
"""
KINDS = {
    "llama": (tiny.llama, [Ternarize(activations=None)], "AutoModelForCausalLM"),
    "tied": (lambda: tiny.llama(tie_word_embeddings=True), [Ternarize(TIED, activations=None)], "AutoModelForCausalLM"),
    "bert": (tiny.bert, [Binarize(activations=None)], "AutoModelForSequenceClassification"),
    "t5": (tiny.t5, [Ternarize(activations=None)], "AutoModelForSeq2SeqLM"),
}


def test_stock_transformers_reads_it_to_the_bit(tmp_path, run_python):
    models, words = {}, []
    for kind, (build, transforms, auto) in KINDS.items():
        model = build()
        for transform in transforms:
            model = transform(model)
        models[kind] = model.eval()
        pack(model, tmp_path / kind, portable=True, rest="float32")
        words += [auto, str(tmp_path / kind), str(tmp_path / f"{kind}.pt")]
    pack(models["llama"], tmp_path / "own")
    run_python(STOCK, str(tmp_path / "own"), *words)
    for kind, model in models.items():
        found = torch.load(tmp_path / f"{kind}.pt")
        torch.testing.assert_close(found["logits"], logits(model), rtol=1e-5, atol=1e-6)
        assert found["packed"] > 5000 / 8


@pytest.mark.parametrize(
    ("build", "transforms", "words"),
    [
        (tiny.bert, [Ternarize(), SplitTernary()], "four levels"),
        (tiny.bert, [Ternarize(per=8)], "a scale for every 8 weights"),
        (tiny.llama, [InsertSubLN(), Ternarize()], "beyond what its config says"),
        (gpt2, [Binarize()], "packs no Conv1D"),
    ],
)
def test_models_that_the_portable_layout_cannot_hold_are_refused(build, transforms, words, tmp_path):
    model = build()
    for transform in transforms:
        model = transform(model)
    with pytest.raises(ValueError, match=words):
        pack(model, tmp_path / "packed", portable=True)
    assert not list(tmp_path.iterdir())
