"""Saving and publishing after a staged run work as Trainer's do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from transformers import AutoModelForCausalLM, TrainingArguments

from hf_stages import Stage, StagedTrainer
from tests.support import tiny


@pytest.fixture
def trained(tmp_path) -> StagedTrainer:
    args = TrainingArguments(
        str(tmp_path / "out"), hub_token="hf_secret", report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps")]
    trainer = StagedTrainer(tiny.llama(), args, stages=stages, train_dataset=tiny.lm_data())
    trainer.train()
    return trainer


def test_save_model_and_card(trained, tmp_path):
    trained.save_model(tmp_path / "saved")
    trained.create_model_card(model_name="staged", dataset="noise")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in trained.model.state_dict().items())
    card = Path(trained.args.output_dir, "README.md").read_text()
    assert "# staged\n" in card
    assert "Data: noise." in card
    assert "| b | - | 2 steps | 2 |" in card


def test_push_to_hub_uploads_the_run(trained, monkeypatch):
    calls: dict = {}

    def create_repo(name, **options):
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(**options):
        calls.update(options, files={str(p) for p in Path(options["folder_path"]).rglob("*") if p.is_file()})
        return "pushed"

    api = SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: api)
    assert trained.push_to_hub() == "pushed"
    assert calls["repo_id"] == "me/out"
    names = {Path(f).relative_to(trained.args.output_dir).as_posix() for f in calls["files"]}
    assert {"model.safetensors", "config.json", "README.md", "01-a/model.safetensors", "run.json"} <= names
    assert {"01-a/README.md", "02-b/README.md"} <= names
    assert not [f for f in calls["files"] if b"hf_secret" in Path(f).read_bytes()]
