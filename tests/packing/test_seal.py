"""A packed folder's seal: what is not as it was written is refused, and stock transformers says what to import."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification

from hf_stages.packing import pack, seal
from hf_stages.packing.quantizer import STOP_TEXT
from tests.packing.models import logits, quantized

pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "packed"
    pack(quantized("bert-binary"), folder, rest="float32")
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def load(folder, **options):
    return AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()


def edit(folder, change):
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    change(whole)
    file.write_text(json.dumps(whole))


def flip_header(folder):
    """Two scales swapped by their offsets: the same shapes and dtypes, other numbers."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    a, b = ("bert.encoder.layer.0.attention.self.query.scale", "bert.encoder.layer.0.attention.self.key.scale")
    header[a]["data_offsets"], header[b]["data_offsets"] = header[b]["data_offsets"], header[a]["data_offsets"]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def flip_weight(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip_header, "model.safetensors"),
        (flip_weight, r"model.safetensors was changed after it was written.*download it anew; if the change is yours"),
        (lambda f: edit(f, lambda c: c.update(layer_norm_eps=0.1)), r"config.json was changed after it was written"),
        (lambda f: edit(f, lambda c: c.update(num_attention_heads=1)), r"config.json was changed"),
        (lambda f: edit(f, lambda c: c["quantization_config"].update(layers=[])), r"config.json was changed"),
        (lambda f: edit(f, lambda c: c["quantization_config"].pop("seal")), "seal is missing or damaged"),
        (lambda f: edit(f, lambda c: c["quantization_config"]["seal"].update(files=1)), "seal is missing or damaged"),
        (
            lambda f: edit(f, lambda c: c["quantization_config"]["seal"]["files"].update({"model.safetensors": None})),
            "its seal in config.json says None",
        ),
        (
            lambda f: edit(f, lambda c: c["quantization_config"]["seal"]["files"].update(more=[1, ""])),
            "more is missing",
        ),
    ],
)
def test_changed_files_are_refused(copy, harm, words):
    harm(copy)
    with pytest.raises(ValueError, match=words):
        load(copy)


@pytest.mark.parametrize("rounds", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_random_changes_are_refused_or_give_the_same_model(packed, tmp_path, rounds):
    chance = random.Random(rounds)
    want = logits(load(packed))
    folder, refused, same = tmp_path / "mutant", 0, 0
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(packed, folder)
        file = folder / chance.choice(["model.safetensors", "model.safetensors", "config.json"])
        data = bytearray(file.read_bytes())
        place = chance.randrange(len(data))
        kind = chance.choice(["bit", "bit", "byte", "cut", "insert"])
        if kind == "bit":
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            data[place] = chance.randrange(256)
        elif kind == "cut":
            del data[place:]
        else:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
        file.write_bytes(data)
        try:
            model = load(folder)
        except Exception as error:  # transformers' own, too: its config is read before ours
            refused += bool(str(error)) and "ignore_mismatched_sizes" not in str(error)
            continue
        assert logits(model).equal(want)
        same += 1
    assert (refused + same, refused > rounds / 2) == (rounds, True)


def test_cards_and_tokenizers_may_change(packed, copy):
    (copy / "README.md").write_text("edited")
    (copy / "more.bin").write_bytes(b"more")
    (copy / "packed.json").unlink()
    assert logits(load(copy, attn_implementation="eager")).equal(logits(load(packed, attn_implementation="eager")))


def test_a_missing_shard_is_refused(tmp_path):
    pack(quantized("bert-binary"), tmp_path / "p", max_shard_size="8KB")
    assert len(list((tmp_path / "p").glob("*.safetensors"))) > 1
    load(tmp_path / "p")
    file = tmp_path / "p" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    last = max(index["weight_map"].values())
    index["weight_map"] = {key: name for key, name in index["weight_map"].items() if name != last}
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json has .* bytes, its seal"):
        load(tmp_path / "p")
    edit(tmp_path / "p", lambda c: c["quantization_config"]["seal"].pop("index"))
    with pytest.raises(ValueError, match=f"{last} is missing"):
        load(tmp_path / "p")


def test_seal_accepts_a_change_of_your_own(copy):
    edit(copy, lambda c: c.update(hidden_act="relu"))
    with pytest.raises(ValueError, match=r"if the change is yours: hf_stages\.packing\.seal"):
        load(copy)
    seal(copy)
    assert load(copy).config.hidden_act == "relu"


def test_a_folder_without_its_seal_is_refused_before_a_model_is_built(copy):
    edit(copy, lambda c: (c["quantization_config"].pop("seal"), c.update(num_hidden_layers=10**9)))
    with pytest.raises(ValueError, match="seal is missing or damaged"):
        load(copy)


def test_one_config_object_loads_a_model_twice(copy):
    config = AutoConfig.from_pretrained(copy)
    for _ in range(2):
        BertForSequenceClassification.from_pretrained(copy, config=config)


def test_a_model_in_the_hubs_cache_loads(copy, tmp_path, monkeypatch):
    """From there the config and the weights come as links into a folder of blobs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    repo = tmp_path / "cache" / "models--a--packed"
    snapshot, blobs = repo / "snapshots" / ("0" * 40), repo / "blobs"
    for folder in (snapshot, blobs, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(copy / name, blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    assert logits(load("a/packed", **options)).equal(logits(load(copy)))
    edit(blobs, lambda c: c.update(layer_norm_eps=0.1))
    with pytest.raises(ValueError, match=r"config\.json was changed"):
        load("a/packed", **options)


def test_a_folder_that_is_not_packed_is_not_sealed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a packed folder"):
        seal(tmp_path)


def test_stock_transformers_says_what_to_import(packed):
    """By an Auto class and by the architecture's own."""
    code = (
        "import sys\nfrom transformers import AutoModelForSequenceClassification, BertModel\nfor kind in "
        "(AutoModelForSequenceClassification, BertModel):\n    try:\n        kind.from_pretrained(sys.argv[1])\n    "
        "except Exception as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(packed)], capture_output=True, text=True, check=True)
    assert [line.endswith(STOP_TEXT) for line in done.stdout.splitlines()] == [True, True]
    assert "import hf_stages" in STOP_TEXT
    assert "UNEXPECTED" not in done.stdout + done.stderr
