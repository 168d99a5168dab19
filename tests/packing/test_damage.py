"""Damaged packed files without a seal, as ``save_pretrained`` writes them, give a clear error and no other model."""

from __future__ import annotations

import json
import random
import shutil
import struct

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_stages.packing import pack
from hf_stages.packing.quantizer import STOP_KEY
from tests.packing.models import logits, quantized
from tests.packing.safetensors_file import parts, write

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "packed"
    pack(quantized("bert-binary"), folder, rest="float32")
    return unsealed(folder)


def unsealed(folder):
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    del whole[STOP_KEY], whole["quantization_config"]["seal"]
    file.write_text(json.dumps(whole))
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


NAME = "bert.encoder.layer.0.attention.self.query"


def truncated(folder, header, data):
    write(folder, header, data[:-7])


def huge_header(folder, header, data):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])


def not_json(folder, header, data):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:8] + b"\xff" + whole[9:])


def another_shape(folder, header, data):
    rows, columns = header[f"{NAME}.weight"]["shape"]
    header[f"{NAME}.weight"]["shape"] = [rows // 2, columns * 2]
    write(folder, header, data)


def another_dtype(folder, header, data):
    header[f"{NAME}.weight"]["dtype"] = "U8"
    write(folder, header, data)


def no_scale(folder, header, data):
    header["unused"] = header.pop(f"{NAME}.scale")
    write(folder, header, data)


def no_weight(folder, header, data):
    header["unused"] = header.pop(f"{NAME}.scale")
    header["unused too"] = header.pop(f"{NAME}.weight")
    write(folder, header, data)


def scale_nan(folder, header, data):
    start, _ = header[f"{NAME}.scale"]["data_offsets"]
    data[start : start + 4] = struct.pack("<f", float("nan"))
    write(folder, header, data)


def entry(key, value, name=f"{NAME}.weight"):
    def apply(folder, header, data):
        header[name][key] = value
        write(folder, header, data)

    return apply


def renamed(old, new):
    def apply(folder, header, data):
        header[new] = header.pop(old)
        write(folder, header, data)

    return apply


def one_module_less(folder, header, data):
    config(lambda c: c["layers"][1]["modules"].remove(NAME))(folder, header, data)


def one_module_twice(folder, header, data):
    config(lambda c: c["layers"].append({**c["layers"][1], "modules": [NAME]}))(folder, header, data)


def no_activations(folder, header, data):
    config(lambda c: c["layers"][0].pop("activations"))(folder, header, data)


def config(change):
    def apply(folder, header, data):
        file = folder / "config.json"
        whole = json.loads(file.read_text())
        change(whole["quantization_config"])
        file.write_text(json.dumps(whole))

    return apply


def bad(key, value):
    return config(lambda c: c["layers"][0].update({key: value}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncated, "bytes of tensors"),
        (huge_header, "a header of"),
        (not_json, "cannot be read"),
        (another_shape, r"expected I8 of shape \[32, 4\]"),
        (another_dtype, "expected I8 of shape"),
        (no_scale, f"{NAME}.scale: is not in the checkpoint"),
        (no_weight, f"{NAME}: is packed, says config.json, but it is not in the checkpoint"),
        (scale_nan, f"{NAME}.scale: expected finite scales, got nan"),
        (bad("levels", "quaternary"), r"layers\[0\].levels: expected one of ternary, binary"),
        (bad("levels", "ternary"), "expected I8 of shape"),
        (bad("group", 5), "groups of 5, which do not fill rows"),
        (bad("group", -1), "expected null or a whole number"),
        (bad("activations", {"bits": 3}), "expected null or bits .8 or 4., symmetric and clip"),
        (bad("modules", ["bert.embeddings.LayerNorm"]), "expected a linear layer or an embedding, got a LayerNorm"),
        (bad("modules", "all"), "a list of module names"),
        (bad("levels", ["binary"]), "expected one of ternary, binary"),
        (bad("group", True), "expected null or a whole number"),
        *(
            (
                bad("activations", found),
                r"layers\[0\].activations: expected null or bits \(8 or 4\), symmetric and clip",
            )
            for found in (
                {},
                True,
                "abc",
                [8, True, None],
                {"bits": 8, "symmetric": True},
                {"bits": 8.0, "symmetric": True, "clip": None},
                {"bits": True, "symmetric": True, "clip": None},
                {"bits": 8, "symmetric": 1, "clip": None},
                {"bits": 8, "symmetric": True, "clip": True},
                {"bits": 8, "symmetric": True, "clip": -1.0},
                {"bits": 8, "symmetric": True, "clip": "x"},
                {"bits": 8, "symmetric": True, "clip": None, "more": 1},
            )
        ),
        (no_activations, "expected levels, group, activations and modules"),
        (bad("more", 1), "expected levels, group, activations and modules"),
        (one_module_less, f"{NAME}: is packed in the checkpoint, and quantization_config.layers .* does not name it"),
        (one_module_twice, "expected each module once"),
        (renamed("classifier.bias", "classifiep.bias"), "classifier.bias is missing from the checkpoint of a Bert"),
        (renamed("bert.pooler.dense.bias", "dense.bias"), "bert.pooler.dense.bias is missing from"),
        *(
            (entry("data_offsets", found), "header of a safetensors file cannot be read")
            for found in ([0, None], 3, [1])
        ),
        *(
            (entry("data_offsets", found), "cannot be read")
            for found in ([0, "9"], [0, 1.5], [-1, 3], [9, 3], [0, True])
        ),
        *((entry("shape", found), "cannot be read") for found in (3, None, "x", [3, None], [3], [-1, -2], {})),
        *((entry("dtype", found), "cannot be read") for found in (None, 3, "F33", ["F32"])),
        (config(lambda c: c.update(layers="all")), "expected a list, got 'all'"),
        *((config(lambda c, found=found: c.update(layers=found)), "expected a list") for found in ({}, [], 0, None)),
        (config(lambda c: c.update(more=1)), "expected quant_method, version, layers, reshaped and seal, got 'more'"),
        (config(lambda c: c.update(reshaped=[])), "expected sizes and numbers by module"),
        (config(lambda c: c.update(version=99)), "reads version 1, got 99; update hf_stages"),
        (config(lambda c: c.update(reshaped={"sizes": {NAME: [0, 1]}})), "expected rows and columns"),
        (config(lambda c: c.update(reshaped={"numbers": {NAME: {"no": 1}}})), "has no number 'no'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_error_says_what_is_damaged(copy, harm, words):
    harm(copy, *parts(copy))
    with pytest.raises(ValueError, match=words):
        load(copy)


def test_an_unexpected_tensor_is_refused(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    save_file({**tensors, "bert.pooler.more": torch.zeros(3)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"bert\.pooler\.more is not of this model, but in the checkpoint"):
        load(copy)


def no_shard(folder, index):
    file = folder / max(json.loads(index.read_text())["weight_map"].values())
    file.unlink()


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_shard, "model-00002-of-00002.safetensors is missing"),
        (lambda folder, index: index.write_bytes(b"\xff" + index.read_bytes()[1:]), "index.json"),
        (lambda folder, index: index.write_text(index.read_text()[:-9]), "index.json"),
        (lambda folder, index: index.write_text("[]"), "index.json"),
        (lambda folder, index: index.write_text('{"weight_map": {}}'), "index.json"),
        (lambda folder, index: index.write_text('{"metadata": {}, "weight_map": {"a": 1}}'), "1 is missing|index.json"),
    ],
)
def test_damaged_shards_and_indexes_are_refused(tmp_path, harm, words, sealed):
    folder = tmp_path / "packed"
    pack(quantized("bert-binary"), folder, max_shard_size="8KB")
    if not sealed:
        unsealed(folder)
    load(folder)
    harm(folder, folder / "model.safetensors.index.json")
    with pytest.raises(ValueError, match=words) as caught:
        load(folder)
    assert "download it anew" in str(caught.value)
    assert type(caught.value) is ValueError


def test_codes_without_a_meaning_are_refused(tmp_path):
    pack(quantized("llama-per-tensor"), tmp_path / "packed", rest="float32")
    header, data = parts(unsealed(tmp_path / "packed"))
    start, _ = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"]
    data[start] &= 0b11110011
    write(tmp_path / "packed", header, data)
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight: expected ternary codes 1, 2 and 3, got 0"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutations_never_crash_and_never_load_another_structure(packed, tmp_path, rounds):
    """Bytes of the header and the config, and the file's length, at random: an error, or a model of this very shape."""
    chance = random.Random(rounds)
    want = {name: (p.shape, p.dtype) for name, p in load(packed).named_parameters()}
    folder = tmp_path / "mutant"
    outcomes = {"refused": 0, "loaded": 0}
    (length,) = struct.unpack("<Q", (packed / "model.safetensors").read_bytes()[:8])
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(packed, folder)
        file = folder / chance.choice(["model.safetensors", "model.safetensors", "config.json"])
        data = bytearray(file.read_bytes())
        reach = 8 + length if file.suffix == ".safetensors" else len(data)
        kind = chance.choice(["flip", "flip", "cut", "insert", "zero"])
        if kind == "flip":
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(reach)] = chance.randrange(256)
        elif kind == "cut":
            del data[chance.randrange(len(data)) :]
        elif kind == "insert":
            place = chance.randrange(reach)
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
        else:
            place = chance.randrange(reach)
            data[place : place + 8] = bytes(8)
        file.write_bytes(data)
        try:
            model = load(folder)
        except Exception as error:  # transformers' own, too: its config is read before ours
            outcomes["refused"] += bool(str(error))
            continue
        outcomes["loaded"] += 1
        got = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
        # Names of labels, a dropout: the config may say another number that is not of the packed layers.
        assert all(
            got[name] == want[name] for name in want if name in got and name.endswith((".scale", "query.weight"))
        )
        assert torch.isfinite(logits(model)).all() or file.suffix == ".safetensors"
    assert outcomes["refused"] > rounds / 4
