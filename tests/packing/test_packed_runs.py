"""From a run to a packed folder: pack_on_save, the command line, and loading in a fresh process."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.commands.cli import main
from hf_stages.packing import pack
from hf_stages.transforms import AddLora, Binarize
from tests.packing.models import IDS, logits
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


def trainer(out, stages):
    args = TrainingArguments(
        output_dir=str(out), report_to="none", use_cpu=True, per_device_train_batch_size=4, optim="adamw_torch_fused"
    )
    return StagedTrainer(tiny.bert(), args, stages=stages, train_dataset=tiny.class_data(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    own = trainer(
        out, [Stage("plain", "1 steps"), Stage("binary", "2 steps", transforms=Binarize(), pack_on_save=True)]
    )
    own.train()
    return out, own.model.eval()


FRESH = """
import sys, torch
import hf_stages
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(torch.arange(12).reshape(2, 6)).logits, sys.argv[2])
"""


def test_a_stage_is_packed_when_it_is_saved(run, tmp_path, run_python):
    out, model = run
    folder = out / "02-binary-exports" / "packed"
    assert not (out / "01-plain-exports").exists()
    run_python(FRESH, str(folder), str(tmp_path / "logits.pt"))
    # The rest is stored in fp16: a relative error of 5e-4 at most in each number.
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(model), rtol=5e-3, atol=5e-4)


def test_the_command_packs_a_stage(run, tmp_path, capsys):
    out, model = run
    to = tmp_path / "packed"
    assert main(["pack", str(out / "02-binary"), "--to", str(to), "--rest", "float32", "--json"]) == 0
    size = json.loads(capsys.readouterr().out)
    assert size["bytes"] == (to / "model.safetensors").stat().st_size
    from transformers import AutoModelForSequenceClassification

    with torch.no_grad():
        packed = AutoModelForSequenceClassification.from_pretrained(to)(IDS).logits
    torch.testing.assert_close(packed, logits(model), rtol=1e-4, atol=1e-6)
    assert main(["pack", str(out / "02-binary"), "--to", str(to)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["pack", str(out / "02-binary"), "--to", str(to), "--overwrite", "--embeddings", "keep"]) == 0
    assert "times smaller than in fp32" in capsys.readouterr().out
    assert main(["pack", str(out / "01-plain"), "--to", str(tmp_path / "no")]) == 2
    assert "no quantized layers" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "nowhere"), "--to", str(tmp_path / "no")]) == 2


def test_what_cannot_be_packed_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"stage 'plain': pack_on_save: .*no quantized layers"):
        trainer(tmp_path, [Stage("plain", "1 steps", pack_on_save=True)]).train()
    assert not list(tmp_path.glob("*/config.json"))


def test_a_folder_that_holds_the_stage_is_never_replaced(run, capsys):
    out, _ = run
    for to in (out, out.parent, out / "02-binary"):
        assert main(["pack", str(out / "02-binary"), "--to", str(to), "--overwrite"]) == 2
        assert "is, or holds, the folder to be packed" in capsys.readouterr().err
    assert (out / "02-binary" / "config.json").is_file()


def test_an_adapter_is_merged_first(tmp_path):
    pytest.importorskip("peft")
    lora = [Binarize(), AddLora(r=2, target_modules=["query"])]
    with pytest.raises(ValueError, match=r"pack_on_save: .*merge them first"):
        trainer(tmp_path / "refused", [Stage("adapted", "1 steps", transforms=lora, pack_on_save=True)]).train()
    trainer(tmp_path / "out", [Stage("adapted", "1 steps", transforms=lora)]).train()
    with pytest.raises(ValueError, match="the model has adapters; merge them first"):
        pack(tmp_path / "out" / "01-adapted", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_packed_model_runs_in_a_pipeline(tmp_path):
    """What people run: the packed folder and its tokenizer by their names alone."""
    from transformers import AutoModelForSequenceClassification, pipeline

    folder = tmp_path / "packed"
    pack(Binarize()(tiny.bert(vocab_size=259)), folder)
    tiny.tokenizer().save_pretrained(folder)
    found = pipeline("text-classification", model=str(folder), top_k=None)(["a question", "another"], batch_size=2)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tiny.tokenizer()(["a question", "another"], padding=True, return_tensors="pt")
    wanted = model(**{key: inputs[key] for key in ("input_ids", "attention_mask")}).logits.softmax(-1)
    for row, scores in zip(found, wanted.tolist(), strict=True):
        assert {each["label"]: each["score"] for each in row} == pytest.approx(
            {model.config.id2label[number]: score for number, score in enumerate(scores)}
        )


def test_a_model_pushed_to_the_hub_loads_unchanged(tmp_path, monkeypatch):
    """What would be uploaded loads as the same packed model."""
    import shutil
    from types import SimpleNamespace

    import transformers.utils.hub as hub
    from transformers import AutoModelForSequenceClassification

    pack(Binarize()(tiny.bert()), tmp_path / "packed")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed").eval()
    api = SimpleNamespace(create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: SimpleNamespace(save=lambda path: None))
    monkeypatch.setattr(
        hub.PushToHubMixin,
        "_upload_modified_files",
        lambda self, folder, *_, **__: shutil.copytree(folder, tmp_path / "hub"),
    )
    model.push_to_hub("someone/packed")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hub").eval()
    assert torch.equal(logits(again), logits(model))
    stored = load_file(tmp_path / "hub" / "model.safetensors")
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.int8} == {
        name
        for name, tensor in load_file(tmp_path / "packed" / "model.safetensors").items()
        if tensor.dtype == torch.int8
    }
