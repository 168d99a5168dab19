"""A loaded packed model saved by ``save_pretrained``: its files know what they held, wherever they go."""

from __future__ import annotations

import json
import random
import shutil
import struct

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_stages.packing import pack, seal
from tests.packing.models import loaded as load
from tests.packing.models import logits, quantized
from tests.packing.safetensors_file import parts, write

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pack(quantized("bert-binary"), folder / "packed", rest="float32")
    load(folder / "packed").save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, change):
    whole = config_of(folder)
    change(whole["quantization_config"])
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    "kind", ["bert-split", "bert-half-width", "llama-tied", "llama-subln", "gpt2", "t5-tied", "vit"]
)
@pytest.mark.parametrize("shard", ["50GB", "8KB"])
def test_a_saved_model_loads_and_its_files_are_checked(kind, shard, tmp_path):
    pack(quantized(kind), tmp_path / "packed")
    model = load(tmp_path / "packed", kind)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    assert logits(load(tmp_path / "saved", kind)).equal(logits(model))
    file = sorted((tmp_path / "saved").glob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="was changed after it was written"):
        load(tmp_path / "saved", kind)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)  # over what was damaged
    assert logits(load(tmp_path / "saved", kind)).equal(logits(model))


def test_it_loads_in_another_dtype_and_without_its_head(saved, tmp_path):
    load(saved, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    load(tmp_path / "half")
    base = AutoModel.from_pretrained(saved)
    base.save_pretrained(tmp_path / "base")
    AutoModel.from_pretrained(tmp_path / "base")
    load(tmp_path / "base")  # a new head is drawn, as transformers does


def test_weights_are_checked_under_their_current_names(tmp_path):
    """transformers reads some architectures' weights by other names, and writes either."""
    pack(quantized("vit"), tmp_path / "packed")
    model = load(tmp_path / "packed", "vit")
    model.save_pretrained(tmp_path / "saved", save_original_format=False)
    assert logits(load(tmp_path / "saved", "vit")).equal(logits(model))


def of_another_save(folder, header):
    header["__metadata__"]["hf_stages"] = json.dumps({"config": "1"})


def damaged(folder, header):
    header["__metadata__"]["hf_stages"] = header["__metadata__"]["hf_stages"][3:]


def exchanged(folder, header):
    a, b = (f"bert.encoder.layer.0.attention.self.{name}.scale" for name in ("query", "key"))
    header[a], header[b] = header[b], header[a]


def renamed(folder, header):
    header["bert.pooler.dense.biat"] = header.pop("bert.pooler.dense.bias")


def other_rounding(folder, header):
    edit(folder, lambda c: c["layers"][1]["activations"].update(bits=4))


def no_rounding(folder, header):
    edit(folder, lambda c: c["layers"][1].update(activations=None))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (of_another_save, "quantization_config was changed"),
        (damaged, "the metadata is damaged"),
        (exchanged, r"self\.(query|key)\.scale was changed after it was written"),
        (renamed, r"bert\.pooler\.dense\.biat was not there when it was written"),
        (other_rounding, "quantization_config was changed after it was written"),
        (no_rounding, "quantization_config was changed after it was written"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_changed_files_are_refused(copy, harm, words):
    header, data = parts(copy)
    harm(copy, header)
    write(copy, header, data)
    with pytest.raises(ValueError, match=words) as caught:
        load(copy)
    assert "hf_stages.packing.seal" in str(caught.value)
    if harm in (exchanged, other_rounding, no_rounding):  # still a model, another one
        seal(copy)
        load(copy)


def test_shards_of_two_saves_do_not_mix(saved, tmp_path):
    for name, scale in (("a", 1.0), ("b", 2.0)):
        model = load(saved)
        model.classifier.weight.data *= scale
        model.save_pretrained(tmp_path / name, max_shard_size="8KB")
    file = sorted((tmp_path / "a").glob("*.safetensors"))[0]
    shutil.copy(tmp_path / "b" / file.name, file)
    with pytest.raises(ValueError, match="of another save"):
        load(tmp_path / "a")


def test_a_shard_missing_from_the_index_is_refused(saved, tmp_path):
    load(saved).save_pretrained(tmp_path / "a", max_shard_size="8KB")
    index = tmp_path / "a" / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    last = max(whole["weight_map"].values())
    whole["weight_map"] = {name: file for name, file in whole["weight_map"].items() if file != last}
    index.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="is not in the checkpoint, which has other parts"):
        load(tmp_path / "a")


def test_an_adapter_beside_the_model_changes_nothing(copy):
    peft = pytest.importorskip("peft")
    model = load(copy)
    before = logits(model)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(copy)
    assert (copy / "adapter_model.safetensors").is_file()
    assert logits(load(copy)).equal(before)


def test_a_dequantized_model_is_saved_without_checksums(saved, tmp_path):
    model = load(saved)
    model.dequantize()
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in config_of(tmp_path / "plain")
    header, _ = parts(tmp_path / "plain")
    assert "hf_stages" not in header["__metadata__"]


@pytest.mark.parametrize("rounds", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_random_changes_are_refused_or_give_the_same_model(saved, tmp_path, rounds):
    """In the file of weights every byte counts."""
    chance, want = random.Random(rounds), logits(load(saved))
    folder, refused = shutil.copytree(saved, tmp_path / "mutant"), 0
    whole = (saved / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for _ in range(rounds):
        data = bytearray(whole)
        place = chance.randrange(chance.choice([8, 8 + length, len(data)]))
        kind = chance.choice(["bit", "byte", "cut", "insert"])
        if kind == "bit":
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            data[place] = chance.randrange(256)
        elif kind == "cut":
            del data[place:]
        else:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
        (folder / "model.safetensors").write_bytes(data)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        except ValueError as error:
            refused += "download it anew" in str(error) or "expected a safetensors file" in str(error)
            continue
        assert logits(model).equal(want)
    assert refused > rounds * 0.9
