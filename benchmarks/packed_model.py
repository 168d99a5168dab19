"""A packed model's forward pass, and a packed decoder's next token, compared with the same model in fp32.

Weights are random, from configs alone: BERT-base at 1x16, 1x128 and 32x128 tokens, and a decoder as wide as a Llama of
a billion weights (2048, 16 heads, 5632) but with few layers and a small vocabulary, one row with a cache. All sides
take turns in one process at torch's own number of threads, forwards and backwards. ``speedup`` compares the best times,
``speedup_median`` is the median over turns, and ``speedup_processor`` compares processor time (all threads), which
other work on the machine changes least.

``no linear layers`` is the model with layers that cost nothing in their place: fp32's time divided by this one is the
most that any linear layer could give (Amdahl). ``transformers`` is what ``pack(portable=True)`` wrote, run by stock
transformers: there, weights are two bits and become fp32 at every call. ``bitnet`` are transformers' own layers for
BitNet. Their rounding of activations is compiled, so they need a C++ compiler.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from benchmarks.common import say
from hf_stages.commands.bench_measurement import (
    Pair,
    decode,
    forward,
    machine,
    now,
    parse_shape,
    since,
    summary,
    time_in_turns,
)
from hf_stages.commands.bench_ways import WAYS
from hf_stages.layers.activations import Activations
from hf_stages.layers.packed_levels import pack_levels
from hf_stages.packing import PackedLinear, PackedSpec, kernels, pack
from hf_stages.transforms import Binarize, SplitTernary, Ternarize

KINDS = {"binary": [Binarize()], "ternary": [Ternarize()], "split": [Ternarize(), SplitTernary()]}
QUICK = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16}
TARGETS = {"1x16": 3.0, "1x128": 2.2, "32x128": 2.0, "decode": 5.0}


class _Nothing(nn.Module):
    """Returns the same zeros at every call."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.out, self.kept = out, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.out)
        if shape not in self.kept:
            self.kept[shape] = torch.zeros(shape)
        return self.kept[shape]


def without_linear_layers(plain: Any) -> Any:
    model = copy.deepcopy(plain)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, _Nothing(module.out_features))
    return model


def with_bitnet_layers(plain: Any) -> Any:
    """Use transformers' layers for BitNet: two bits a weight, unpacked to float32 at every call; 8-bit activations."""
    from transformers.integrations.bitnet import BitLinear, pack_weights

    model = copy.deepcopy(plain)
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module.out_features % 4:
            continue
        made = BitLinear(module.in_features, module.out_features, module.bias is not None, dtype=torch.float32)
        made.weight.copy_(pack_weights(module.weight.sign()))
        model.set_submodule(name, made)
    return model


def sides(build: Callable[[], Any], kinds: list[str], left_out: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Find the ways to run one model, and the reasons why others are missing."""
    models: dict[str, Any] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            torch.manual_seed(0)
            quantized = build().eval()
            for transform in KINDS[kind]:
                quantized = transform(quantized)
            models[kind] = WAYS["packed"].make(quantized)
            if kind == "ternary" and "transformers" not in left_out:
                pack(quantized, Path(folder) / "portable", portable=True)
                kind_of = AutoModel if isinstance(quantized, BertModel) else type(quantized)
                models["transformers"] = kind_of.from_pretrained(Path(folder) / "portable").eval()
    models["fp32"] = WAYS["fp32"].make(build()).eval()
    models["no linear layers"] = without_linear_layers(models["fp32"])
    makers = {**{way: WAYS[way].make for way in ("bf16", "int8", "bnb8", "bnb4")}, "bitnet": with_bitnet_layers}
    for way in (way for way in makers if way not in left_out):
        try:
            models[way] = makers[way](models["fp32"])
        except Exception as error:
            absent[way] = f"{type(error).__name__}: {error}"[:200]
    return models, absent


def timed(cells: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    with torch.no_grad():
        taken = time_in_turns(cells, options.repeats, options.seconds)
    found: dict[str, Any] = {way: summary(own, taken["fp32"]) for way, own in taken.items()}
    bare = found["no linear layers"]
    bare["share_of_fp32"] = round(1 / bare.pop("speedup"), 4)
    bare["amdahl_bound"] = round(1 / bare["share_of_fp32"], 2)
    return found


def show(name: str, found: dict[str, Any]) -> None:
    for way, own in found.items():
        if "failed" in own:
            print(f"{name:8} {way:17} {own['failed']}", flush=True)
            continue
        note = f"{own['share_of_fp32']:.0%} of fp32, bound {own['amdahl_bound']}x" if "amdahl_bound" in own else ""
        note = (
            note
            or f"{own['speedup']:5.2f}x (turns {own['speedup_median']:.2f}, processor {own['speedup_processor']:.2f})"
        )
        print(f"{name:8} {way:17} {1e3 * own['best']:9.2f} ms ({1e3 * own['median']:9.2f})  {note}", flush=True)


# ---- one layer beside ONNX Runtime's ----


def onnx_layer(levels: torch.Tensor, scale: torch.Tensor, block: int = 32) -> Callable[[Any], Any]:
    """Run MatMulNBits of two bits with 8-bit activations inside (accuracy_level 4)."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    out, width = levels.shape
    codes = (levels + 2).to(torch.uint8).reshape(out, width // block, block // 4, 4)
    packed = (codes << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)).sum(-1).to(torch.uint8)
    scales = scale.expand(out, width // block).contiguous()
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "s"],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=out,
        bits=2,
        block_size=block,
        accuracy_level=4,
    )
    tensors = [numpy_helper.from_array(t.numpy(), name) for t, name in ((packed, "b"), (scales.flatten(), "s"))]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", size]) for n, size in (("x", width), ("y", out))
    ]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def one_layer(options: argparse.Namespace) -> dict[str, Any]:
    width, out = (64, 128) if options.quick else (768, 3072)
    torch.manual_seed(0)
    levels, scale = torch.randint(-1, 2, (out, width), dtype=torch.int8), torch.full((out, 1), 0.02)
    plain = nn.Linear(width, out, bias=False)
    plain.weight.data = levels * scale
    packed = PackedLinear(width, out, PackedSpec("ternary", None, Activations()), bias=False, **bytes_of(levels, scale))
    calls: dict[str, Callable[[Any], Any]] = {"ternary": packed, "fp32": plain}
    found: dict[str, Any] = {"shape": [width, out]}
    try:
        calls["onnxruntime"] = onnx_layer(levels, scale)
        x = torch.randn(4, width)
        with torch.no_grad():
            far = (torch.from_numpy(calls["onnxruntime"](x)) - plain(x)).abs().max() / plain(x).abs().max()
        found["onnxruntime_error"] = round(float(far), 5)
    except Exception as error:
        found["onnxruntime"] = f"{type(error).__name__}: {error}"[:200]
    for rows in (1, 16, 128):
        x = torch.randn(rows, width)
        with torch.no_grad():
            taken = time_in_turns(
                {way: called(call, x) for way, call in calls.items()}, options.repeats, options.seconds
            )
        found[str(rows)] = {way: summary(own, taken["fp32"]) for way, own in taken.items()}
        show(f"layer {rows}", found[str(rows)])
    return found


def bytes_of(levels: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": pack_levels(levels, 2).view(torch.int8), "scale": scale}


def called(call: Callable[[Any], Any], x: torch.Tensor) -> Callable[[int], Any]:
    def cell(calls: int) -> Pair:
        began = now()
        for _ in range(calls):
            call(x)
        return since(began, calls)

    return cell


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, two turns: does it run, no more")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=30.0, help="after which a side takes no further turn")
    parser.add_argument("--threads", type=int, help="torch's own number if left out")
    parser.add_argument("--rows", nargs="*", default=["1x16", "1x128", "32x128"], metavar="ROWSxTOKENS", help="of BERT")
    parser.add_argument("--layers", type=int, default=4, help="of the decoder")
    parser.add_argument("--only", choices=["bert", "llama", "layer"], nargs="*", default=["bert", "llama", "layer"])
    parser.add_argument(
        "--leave-out", nargs="*", default=[], choices=["transformers", "bitnet", "bf16", "int8", "bnb8", "bnb4"]
    )
    options = parser.parse_args(argv)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every 8-bit call
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.repeats, options.seconds = 2, 0.1
    found: dict[str, Any] = {}
    if "bert" in options.only:
        config = BertConfig(**QUICK) if options.quick else BertConfig()
        models, absent = sides(lambda: BertModel(config), list(KINDS), options.leave_out)
        for shape in ["1x16", "4x32"] if options.quick else options.rows:
            found[shape] = timed({way: forward(m, parse_shape(shape)) for way, m in models.items()}, options)
            show(shape, found[shape])
        found["absent"] = absent
    if "llama" in options.only:
        models = {}
        gc.collect()
        sizes = {**(QUICK if options.quick else {**LLAMA, "num_hidden_layers": options.layers})}
        config = LlamaConfig(vocab_size=1024, max_position_embeddings=128, **sizes)
        models, _ = sides(lambda: LlamaForCausalLM(config), ["binary", "ternary"], options.leave_out)
        found["decode"] = timed({way: decode(m, 4 if options.quick else 16) for way, m in models.items()}, options)
        show("decode", found["decode"])
    layer = one_layer(options) if "layer" in options.only else None
    say(
        "packed_model",
        quick=options.quick,
        kernel=kernels.which(),
        machine=machine(),
        target=TARGETS,
        found=found,
        layer=layer,
    )


if __name__ == "__main__":
    main()
