"""ONNX files, run by onnxruntime beside the stage's own model."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from hf_stages import Stage, recipes
from hf_stages.layers import Activations, BinaryLinear, SplitLinear, TernaryEmbedding, TernaryLinear
from hf_stages.packing.formats import Onnx, model_weights
from hf_stages.packing.formats.onnx_graph import Graph
from hf_stages.packing.formats.onnx_layers import Layers, block_of, round_activations
from hf_stages.transforms import Binarize, SplitTernary, Ternarize
from tests.packing.formats.folders import loaded, trained, word_piece
from tests.support import tiny

onnx = pytest.importorskip("onnx", reason="the ONNX exporter needs onnx: pip install 'hf_stages[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="its files are run by onnxruntime: pip install 'hf_stages[onnx]'")
pytestmark = pytest.mark.usefixtures("quick_gc")


def session(file):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def batch(kind):
    """Two rows, the second one padded; of BERT some tokens of a second sentence."""
    ids = torch.randint(5, tiny.VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    return {**given, "token_type_ids": ids % 2} if kind == "bert" else given


def both(folder, file, kind, **options):
    """Logits of onnxruntime, and of the stage's own model, where there are tokens."""
    given = batch(kind)
    with torch.no_grad():
        want = loaded(folder, **options)(**given).logits.numpy()
    (got,) = session(file).run(["logits"], {name: tensor.numpy() for name, tensor in given.items()})
    assert got.shape == want.shape
    seen = given["attention_mask"].numpy() > 0 if kind == "llama" else np.s_[:]
    return got[seen], want[seen]


RUNS = {
    "bert-ternary": ("bert", {}, [Ternarize()]),
    "bert-split": ("bert", {"hidden_act": "gelu_new"}, [Ternarize(clip=1.5), SplitTernary()]),
    "llama-binary": ("llama", {"hidden_size": 40, "attention_bias": True}, [Binarize(activations=None)]),
    "llama-tied": (
        "llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e3}},
        [Ternarize(per=16)],
    ),
}
"""Kind, config, transforms."""


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    kind, config, transforms = RUNS[request.param]
    folder = trained(tmp_path_factory.mktemp("run"), getattr(tiny, kind)(**config), transforms)
    return kind, folder


def test_the_graph_computes_what_was_trained(run, tmp_path):
    """Sums are added up in another order; a rounded activation may then take its neighbour's code, at 1e-3 or so."""
    kind, folder = run
    report = Onnx()(folder, tmp_path)
    onnx.checker.check_model(onnx.load(report.file))
    got, want = both(folder, report.file, kind)
    assert np.median(np.abs(got - want)) <= 1e-6
    assert np.abs(got - want).max() <= 1e-2 * np.abs(want).max()
    assert any("MatMulNBits" in name for name in report.tensors)
    assert report.notes == ()


def test_activations_may_be_left_in_full_precision(run, tmp_path):
    kind, folder = run
    rounds = any(getattr(module, "activations", None) for module in loaded(folder).modules())
    report = Onnx("weights.onnx", activations="full")(folder, tmp_path)
    got, want = both(folder, report.file, kind, rounding=False)
    np.testing.assert_allclose(got, want, atol=2e-6, rtol=1e-5)
    if rounds:
        assert np.abs(got - both(folder, report.file, kind)[1]).max() > 1e-4


def test_activations_may_be_rounded_by_blocks(run, tmp_path):
    """Near the function of the weights alone; onnxruntime takes no blocks of 16 in whole numbers."""
    kind, folder = run
    report = Onnx("blocks.onnx", activations="blocks")(folder, tmp_path)
    got, want = both(folder, report.file, kind, rounding=False)
    blocks = {item.i for n in onnx.load(report.file).graph.node for item in n.attribute if item.name == "block_size"}
    assert (np.abs(got - want).max() > 1e-5) == (blocks != {16})
    assert np.abs(got - want).max() <= 5e-2 * np.abs(want).max()


def test_float16_makes_the_file_smaller_and_the_tokenizer_is_copied(tmp_path):
    folder = trained(
        tmp_path / "run",
        tiny.bert(),
        [Ternarize("encoder", activations=None)],
        tokenizer=word_piece(),
        exporters=[Onnx()],
    )
    report = Onnx("half.onnx", rest="float16")(folder, tmp_path)
    assert report.bytes < (tmp_path / "run" / "01-low-exports" / "model.onnx").stat().st_size
    got, want = both(folder, report.file, "bert")
    assert 0 < np.abs(got - want).max() <= 2e-3 * np.abs(want).max()
    assert (tmp_path / "run" / "01-low-exports" / "tokenizer.json").is_file()


def test_an_encoder_gives_hidden_states(tmp_path, monkeypatch):
    model = Ternarize()(tiny.bert()).bert.eval()
    monkeypatch.setattr(model_weights, "read_stage", lambda folder: (model, []))
    report, given = Onnx()(tmp_path, tmp_path), batch("bert")
    hidden, pooled = session(report.file).run(None, {name: tensor.numpy() for name, tensor in given.items()})
    with torch.no_grad():
        want = model(**given)
    seen = given["attention_mask"].numpy() > 0
    np.testing.assert_allclose(hidden[seen], want.last_hidden_state.numpy()[seen], atol=1e-4)
    np.testing.assert_allclose(pooled, want.pooler_output.numpy(), atol=1e-4)


ROUNDINGS = [
    Activations(),
    Activations(4),
    Activations(8, symmetric=False),
    Activations(8, clip=2.0),
    Activations(4, symmetric=False, clip=1.5),
]


@pytest.mark.parametrize("how", ROUNDINGS, ids=repr)
def test_activations_are_rounded_the_same_bit_for_bit(how, tmp_path):
    graph = float_graph()
    clip = None if how.clip is None else how.initial_range() * 1.1
    graph.output("y", round_activations(graph, "x", how, clip), ["a", "b", "c"])
    graph.save(tmp_path / "round.onnx", "")
    x = 3 * torch.randn(5, 40, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    (got,) = session(tmp_path / "round.onnx").run(None, {"x": x.numpy()})
    assert np.array_equal(got, how(x, clip).numpy())


def float_graph():
    graph = Graph(np.float32)
    shape = ["a", "b", "c"]
    graph._inputs.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape))
    return graph


class Of:
    """Stands for a Source: one module, whatever the path."""

    def __init__(self, module):
        self.module = module

    def weight(self, path):
        return model_weights.levels_of(path, self.module)

    def bias(self, path):
        return None if self.module.bias is None else self.module.bias.detach().numpy()


LINEARS = {
    "ternary, rows of 100": TernaryLinear(100, 6),
    "ternary, groups of 48": TernaryLinear(96, 6, per=48, bias=False),
    "binary, groups of 64": BinaryLinear(192, 6, per=64),
    "split, one scale": SplitLinear(128, 6, per="tensor"),
}


@pytest.mark.parametrize("name", LINEARS)
def test_a_layer_of_any_width_is_written(name, tmp_path):
    layer, graph = LINEARS[name], float_graph()
    graph.output("y", Layers(graph, Of(layer)).linear("x", "x"), ["a", "b", "c"])
    graph.save(tmp_path / "layer.onnx", "")
    x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
    (got,) = session(tmp_path / "layer.onnx").run(None, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, layer(x).numpy(), atol=2e-6, rtol=1e-5)


def test_a_quantized_embedding_is_exact(tmp_path):
    """Rows of 30 do not fill their bytes."""
    for per in ("row", 10):
        table, graph = TernaryEmbedding(7, 30, per=per), Graph(np.float32)
        ids = graph.input("ids", ["a", "b"])
        graph.output("y", Layers(graph, Of(table)).table("x", ids), ["a", "b", "c"])
        graph.save(tmp_path / "table.onnx", "")
        rows = torch.tensor([[0, 6, 3], [3, 1, 2]])
        (got,) = session(tmp_path / "table.onnx").run(None, {"ids": rows.numpy()})
        with torch.no_grad():
            assert np.array_equal(got, table(rows).numpy())


def test_models_and_arguments_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="groups of 8 have scales of their own"):
        block_of(64, 8)
    monkeypatch.setattr(model_weights, "read_stage", lambda folder: (Ternarize()(tiny.t5()), []))
    with pytest.raises(ValueError, match=r"Onnx: expected one of BertModel, .* got a T5ForConditionalGeneration"):
        Onnx()(tmp_path, tmp_path)
    monkeypatch.setattr(model_weights, "read_stage", lambda folder: (tiny.bert(), []))
    with pytest.raises(ValueError, match="Onnx: has no quantized layers"):
        Onnx()(tmp_path, tmp_path)
    monkeypatch.setattr(
        model_weights, "read_stage", lambda folder: (Ternarize()(tiny.bert(hidden_act="gelu_fast")), [])
    )
    with pytest.raises(ValueError, match="hidden_act: expected gelu"):
        Onnx()(tmp_path, tmp_path)
    for given in ({"name": "model"}, {"rest": "int8"}, {"activations": True}):
        with pytest.raises(ValueError, match=r"Onnx: (name|rest|activations): expected"):
            Onnx(**given)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else real(name, *more))
    with pytest.raises(ValueError, match=r"needs the package onnx: pip install 'hf_stages\[onnx\]'"):
        Onnx()


def test_a_recipe_can_name_it():
    text = "stages: [{name: low, until: 1 steps, exporters: [{use: Onnx, activations: blocks}]}]"
    (stage,) = recipes.loads(text).stages
    assert stage == Stage("low", "1 steps", exporters=[Onnx(activations="blocks")])
