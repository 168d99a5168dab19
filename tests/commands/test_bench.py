"""Size and speed of a folder's model: every way runs the same function, failures are reasons, not crashes."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
import torch
from torch import nn

from benchmarks import packed_model
from hf_stages.commands import bench_measurement as timing
from hf_stages.commands import cli
from hf_stages.commands.bench_measurement import bench, parse_shape, summary, time_in_turns, write_card
from hf_stages.commands.bench_ways import WAYS, load, make_models, resident_bytes
from hf_stages.packing import kernels, pack
from hf_stages.packing.kernels import library
from hf_stages.transforms import Binarize, Ternarize
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")
FEW = {"shapes": ["1x4"], "repeats": 1, "tokens": 2}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "packed"
    pack(Ternarize()(tiny.llama()), folder)
    return folder


def test_a_packed_decoder_is_measured_and_its_card_written(packed):
    found = bench(packed, **{**FEW, "shapes": ["1x4", "2x65"]}, ways=["packed", "fp32", "int8"], save=True)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["packed", "fp32", "int8"]
    assert found["shapes"] == {"1x4": {"rows": 1, "tokens": 4}, "2x65": {"rows": 2, "tokens": 65}}
    assert found["disk_bytes"] == (packed / "model.safetensors").stat().st_size
    for row in rows.values():
        assert row["times"]["2x65"] == {"failed": "ValueError: longer than the model's 64 positions"}
        assert all(row["times"][name]["best"] > 0 for name in ("1x4", "decode"))
        assert set(row["times"]["decode"]) >= {"median", "turns", "speedup", "speedup_median", "processor"}
    plain = load(packed)
    plain.dequantize()
    assert rows["fp32"]["weight_bytes"] == resident_bytes(plain)
    assert rows["int8"]["weight_bytes"] < rows["fp32"]["weight_bytes"]
    if library.library_path() is not None:
        assert rows["packed"]["weight_bytes"] < rows["int8"]["weight_bytes"]
    elif kernels.which() == "dense":  # keeps what it unpacks, and that counts
        assert rows["packed"]["weight_bytes"] > rows["fp32"]["weight_bytes"]
    assert json.loads((packed / "bench.json").read_text()) == json.loads(json.dumps(found))
    assert type(load(packed)) is type(plain)
    card = (packed / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert "# packed\n" in card
    assert "| packed | " in card
    assert "## Size and speed" in card


def test_a_sealed_card_is_left_alone(packed, caplog):
    found = {"folder": str(packed)}
    (packed / "README.md").write_text("of the stage")
    (packed / "seal.json").write_text('{"schema": 1, "files": {"README.md": {}}}')
    write_card(packed, found)
    (packed / "seal.json").unlink()
    assert (packed / "README.md").read_text() == "of the stage"
    assert "sealed" in caplog.text


def test_of_a_plain_model_nothing_is_packed_and_images_have_no_length(tmp_path):
    tiny.vit().save_pretrained(tmp_path)
    found = bench(tmp_path, shapes=["1x16", "1x128", "3x4"], repeats=1, ways=["own", "packed", "fp32"])
    assert [row["way"] for row in found["rows"]] == ["fp32"]
    assert list(found["shapes"]) == ["1 image", "3 images"]
    assert found["decoded"] is None


@torch.no_grad()
def test_all_ways_are_the_same_function():
    model = Binarize(activations=None)(tiny.bert()).eval()
    models, absent = make_models(model, ["own", "packed", "fp32", "bf16", "int8"])
    assert not absent
    ids = torch.arange(12).reshape(2, 6)
    wanted = model(input_ids=ids).logits
    assert torch.equal(models["own"](input_ids=ids).logits, wanted)
    torch.testing.assert_close(models["fp32"](input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)
    for way in ("packed", "bf16", "int8"):  # which round
        torch.testing.assert_close(models[way](input_ids=ids).logits.float(), wanted, rtol=0.1, atol=0.05)
    # bfloat16 is made of a copy: the others still have their weights.
    assert models["fp32"].dtype == torch.float32
    assert type(models["int8"].classifier) is not type(models["fp32"].classifier)


def test_what_cannot_be_made_has_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    models, absent = make_models(tiny.bert(), ["fp32", "bnb8"])
    assert list(models) == ["fp32"]
    assert "bitsandbytes" in absent["bnb8"]


@pytest.mark.parametrize("way", ["bnb8", "bnb4"])
@torch.no_grad()
def test_bitsandbytes_leaves_the_output_embeddings(way):
    pytest.importorskip("bitsandbytes")
    plain = tiny.llama().eval()
    try:
        made = WAYS[way].make(plain)
    except Exception as error:
        pytest.skip(f"not on this machine: {error}")
    assert type(made.lm_head) is nn.Linear
    assert "bitsandbytes" in type(made.model.layers[0].mlp.up_proj).__module__
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.filterwarnings("ignore:torch.ao:DeprecationWarning")
def test_shared_memory_counts_once_and_kept_tensors_count():
    module = nn.Linear(8, 4)
    module.other, module.kept = module.weight, {"sums": ((), torch.zeros(10))}
    assert resident_bytes(nn.ModuleList([module, module])) == 4 * (32 + 4 + 10)
    rounded = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear}, dtype=torch.qint8)
    assert 32 <= resident_bytes(rounded) <= 32 + 4 * 4 + 32  # and each layer's own scale and zero point


def test_all_take_turns_there_and_back():
    order = []

    def cell(name, seconds):
        def run(calls):
            order.append(name)
            return seconds, seconds

        return run

    def fails(calls):
        raise RuntimeError("no such kernel\nand a long story")

    taken = time_in_turns({"a": cell("a", 2.0), "b": cell("b", 5.0), "c": fails}, repeats=4, seconds=10.0)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "a"]
    assert taken == {"a": [(2.0, 2.0)] * 4, "b": [(5.0, 5.0)] * 2, "c": "RuntimeError: no such kernel"}


def test_a_speed_up_is_of_the_best_and_of_each_turn():
    own, plain = [(1.0, 1.0), (2.0, 1.0), (4.0, 1.5)], [(3.0, 5.0), (2.0, 4.0), (20.0, 6.0)]
    found = summary(own, plain)
    assert (found["best"], found["median"], found["turns"]) == (1.0, 2.0, 3)
    assert found["speedup"] == 2.0
    assert found["speedup_median"] == statistics.median([3.0, 1.0, 5.0])
    assert found["speedup_processor"] == 4.0
    assert summary("why", plain) == {"failed": "why"}
    assert "speedup" not in summary(own, None)


@pytest.mark.parametrize("text", ["", "16", "1x", "0x16", "1x16x2", "-1x2"])
def test_shapes_that_are_no_rows_by_tokens_are_refused(text):
    with pytest.raises(ValueError, match="rows: expected rows x tokens, such as 1x128, got"):
        parse_shape(text)


def test_threads_are_given_back(packed):
    before = torch.get_num_threads()
    found = bench(packed, **FEW, ways=["packed"], threads=before + 1)
    assert found["machine"]["threads"] == before + 1
    assert torch.get_num_threads() == before


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_refuses_what_is_no_folder(packed, capsys):
    words = ["bench", str(packed), "--rows", "1x4", "--ways", "packed", "fp32", "--repeats", "1", "--tokens", "2"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "LlamaForCausalLM" in shown
    assert "decode, tokens/s" in shown
    assert cli.main([*words, str(packed), "--json"]) == 2  # a folder is no number
    capsys.readouterr()
    assert cli.main(["bench", str(packed), *words[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["folder"] for one in found] == [str(packed)] * 2


def damaged(folder, packed, name):
    for file in packed.iterdir():
        (folder / file.name).write_bytes(b"{]" if file.name == name else file.read_bytes())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, packed: folder.rmdir(), "there is none"),
        (lambda folder, packed: None, "no config.json"),
        (lambda folder, packed: (folder / "adapter_config.json").write_text("{}"), "merge it first"),
        (lambda folder, packed: damaged(folder, packed, "config.json"), "cannot be loaded"),
        (lambda folder, packed: damaged(folder, packed, "model.safetensors"), "cannot be loaded"),
        (lambda folder, packed: (folder / "stage.json").write_text("[]"), "cannot be loaded"),
    ],
)
def test_a_folder_without_a_model_is_exit_code_2(packed, tmp_path, capsys, make, message):
    (tmp_path / "it").mkdir()
    make(tmp_path / "it", packed)
    assert cli.main(["bench", str(tmp_path / "it")]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    "words", [["--rows", "16"], ["--ways", "fp8"], ["--repeats", "0"], ["--tokens", "0"], ["--threads", "0"]]
)
def test_bad_usage_is_exit_code_2(packed, capsys, words):
    assert cli.main(["bench", str(packed), *words]) == 2
    assert f"{words[0][2:]}" in capsys.readouterr().err


def test_a_model_of_sound_is_refused(packed, monkeypatch):
    monkeypatch.setattr(timing, "load", lambda *args, **options: _Sound())
    with pytest.raises(ValueError, match="tokens or images, got one that takes input_values"):
        bench(packed, **FEW)


class _Sound:
    main_input_name = "input_values"


def test_the_benchmark_runs(capsys):
    packed_model.main(["--quick", "--leave-out", "bitnet", "bf16", "bnb8", "bnb4"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["found"]) == {"1x16", "4x32", "absent", "decode"}
    assert found["found"]["1x16"]["no linear layers"]["amdahl_bound"] > 0  # of tiny layers it is noise
    assert all("best" in own for own in found["found"]["decode"].values())
