"""Cards say what was trained and how to load it; their own lines of Python give the model back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.commands.bench_measurement import bench
from hf_stages.core.sealed_folders import find_damage
from hf_stages.losses import LogitKL, TaskLoss
from hf_stages.packing import pack
from hf_stages.schedules import Resume, Rewarm
from hf_stages.transforms import AddLora, InsertSubLN, MergeLora, Ternarize
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")
IDS = torch.arange(10).reshape(2, 5) + 5


def trained(out, stages, model=None, **kwargs):
    options = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = TrainingArguments(str(out), per_device_train_batch_size=4, warmup_steps=1, **options)
    data = tiny.lm_data(16)
    model = tiny.llama() if model is None else model
    trainer = StagedTrainer(model, args, stages=stages, train_dataset=data, eval_dataset=data, **kwargs)
    trainer.train()
    return trainer


def text_of(folder: Path) -> str:
    """A card that the Hub could read, and that names no place of this machine."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "hf_stages" in ModelCard(text).data.tags
    assert not re.search(r"(?<![\w.:/])/\w+/", text), text
    return text


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def loaded(folder: Path):
    """What the card's own lines give, run as they stand."""
    text = text_of(folder)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 3
    names: dict = {}
    exec(code, names)
    return names["model"].eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


KINDS = {
    "plain": [Stage("plain", "1 step")],
    "ternary": [Stage("ternary", "1 step", transforms=[Ternarize()])],
    "lora": [Stage("lora", "1 step", transforms=[AddLora(r=2)])],
    "merged": [Stage("lora", "1 step", transforms=[AddLora(r=2)]), Stage("merged", "1 step", transforms=[MergeLora()])],
    "own-type": [Stage("own", "1 step", transforms=[InsertSubLN()])],
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_lines_load_the_model(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    trainer = trained(tmp_path / "out", KINDS[kind])
    wanted = logits(trainer.model.eval())
    last = sorted((tmp_path / "out").glob("*-*"))[-1]
    torch.testing.assert_close(logits(loaded(last)), wanted)
    trainer.create_model_card()
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), wanted)
    trainer.save_model()
    trainer.create_model_card()
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), wanted)


@pytest.mark.parametrize("kind", ["DoRA", "prompts"])
def test_adapters_of_other_kinds(tmp_path, monkeypatch, kind):
    """One that stock transformers reads, and one whose base and adapter lie apart."""
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    configs = {
        "DoRA": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "prompts": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    trainer = trained(tmp_path / "out", [Stage("a", "1 step")], peft.get_peft_model(tiny.llama(), configs[kind]))
    wanted = logits(trainer.model.eval())
    torch.testing.assert_close(logits(loaded(tmp_path / "out" / "01-a")), wanted)
    library = {"DoRA": "transformers", "prompts": "peft"}[kind]
    assert ModelCard(text_of(tmp_path / "out" / "01-a")).data.library_name == library
    trainer.save_model()
    trainer.create_model_card()
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), wanted)


@pytest.mark.parametrize("portable", [False, True])
def test_packed(tmp_path, monkeypatch, portable):
    monkeypatch.chdir(tmp_path)
    trainer = trained(tmp_path / "out", [Stage("ternary", "1 step", transforms=[Ternarize(activations=None)])])
    pack(tmp_path / "out" / "01-ternary", tmp_path / "packed", rest="float32", portable=portable)
    torch.testing.assert_close(logits(loaded(tmp_path / "packed")), logits(trainer.model.eval()), rtol=1e-2, atol=1e-2)
    text = text_of(tmp_path / "packed")
    assert "# 01-ternary, packed" in text
    assert "bits a weight" in text
    assert "## Metrics before packing" in text
    assert row(text, "ternary")[2] == "1 steps"
    assert not (tmp_path / "packed" / "seal.json").exists(), "the stage's seal is of other files"
    bench(tmp_path / "packed", shapes=["1x4"], repeats=1, tokens=2, ways=["packed", "fp32"], save=True)
    assert text_of(tmp_path / "packed").startswith(text.rstrip("\n") + "\n\n<!-- hf_stages: size and speed -->")


def test_a_model_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Ternarize()(tiny.llama())
    pack(model, tmp_path / "packed", rest="float32")
    assert "## Stages" not in text_of(tmp_path / "packed")
    assert "weights are packed" in text_of(tmp_path / "packed")
    torch.testing.assert_close(logits(loaded(tmp_path / "packed")), logits(model.eval()), rtol=1e-2, atol=1e-2)


def test_it_says_what_was_trained(tmp_path):
    stages = [
        Stage("warm", "6 steps"),
        Stage("taught", "2 steps", loss=TaskLoss() + 0.5 * LogitKL(temperature=2.0), schedule=Rewarm(1e-4, warmup=1)),
        Stage("on", "256 tokens", schedule=Resume(), transforms=[Ternarize()]),
        Stage("branch", "1 step", parents="warm"),
    ]
    trained(tmp_path / "out", stages, teacher=tiny.llama(seed=3))
    text = text_of(tmp_path / "out" / "03-on")
    assert "Trained with hf_stages in 3 stages, from a LlamaForCausalLM without a name." in text
    assert row(text, "warm") == [
        "warm",
        "-",
        "6 steps",
        "6",
        "384",
        "TaskLoss",
        "-",
        "5e-5 -> 0",
        "linear, warmup 1",
        "until",
    ]
    taught = row(text, "taught")
    assert taught[5:7] == ["TaskLoss + 0.5 * LogitKL(temperature=2.0)", "a model in memory"]
    assert taught[7].startswith("1e-4 -> ")
    assert taught[8] == "Rewarm(to=0.0001, warmup=1)"
    on = row(text, "on")
    assert (on[1], on[2], on[4], on[8]) == ("Ternarize", "256 tokens", "256", "Resume")
    assert float(on[7].split(" -> ")[0]) < 1e-4, "it resumes behind the peak, which is the stage's before"
    assert float(row(text, "eval_loss")[1]) > 1
    assert "_per_second" not in text
    assert "num_epochs" not in text
    assert f"torch {torch.__version__}" in text
    branch = text_of(tmp_path / "out" / "04-branch")
    assert "| warm |" in branch
    assert "| taught |" not in branch, "it does not stand on it"


def named_model(name):
    model = tiny.llama()
    model.config._name_or_path = name
    return model


def test_what_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "a", [Stage("a", "1 step")], named_model("some-org/some-model"))
    assert ModelCard(text_of(tmp_path / "a" / "01-a")).data.base_model == "some-org/some-model"
    assert "in 1 stage, from some-org/some-model." in text_of(tmp_path / "a" / "01-a")
    for number, local in enumerate(("a/01-a", str(tmp_path / "gone" / "01-a"), "./a/01-a")):
        out = tmp_path / f"b{number}"
        trained(out, [Stage("b", "1 step")], named_model(local))
        text = text_of(out / "01-b")
        assert ModelCard(text).data.base_model is None
        assert "from 01-a." in text


def test_the_runs_card_takes_what_trainers_takes(tmp_path):
    trainer = trained(tmp_path / "out", [Stage("a", "2 steps"), Stage("b", "1 step")])
    trainer.create_model_card(
        license="mit",
        language="en",
        tags="mine",
        model_name="Staged",
        finetuned_from="org/base",
        tasks="text-generation",
        dataset_tags="org/data",
        dataset="Data",
        dataset_args="split: train",
    )
    text = text_of(tmp_path / "out")
    data = ModelCard(text).data
    assert (data.license, data.language, data.base_model) == ("mit", "en", "org/base")
    assert (data.pipeline_tag, data.datasets, data.tags) == ("text-generation", ["org/data"], ["hf_stages", "mine"])
    assert "# Staged\n" in text
    assert "Data: Data, split: train." in text
    assert row(text, "a")[3] == "2"
    trainer.create_model_card()
    data = ModelCard(text_of(tmp_path / "out")).data
    assert data.license is None
    assert data.tags == ["hf_stages", "mine"], "those of a card that is there stay, as with Trainer"


def test_before_any_stage_and_without_stages(tmp_path):
    args = TrainingArguments(str(tmp_path / "out"), report_to=[], use_cpu=True)
    staged = StagedTrainer(tiny.llama(), args, stages=[Stage("a", "1 step")], train_dataset=tiny.lm_data(16))
    staged.create_model_card()
    assert "no stage of the run is finished" in text_of(tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    StagedTrainer(tiny.llama(), args, train_dataset=tiny.lm_data(16)).create_model_card()
    assert "num_epochs: 3.0" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8"), "it is Trainer's own"


def test_a_card_may_be_edited(tmp_path):
    """It is for people: a folder whose card was edited is whole, and its run goes on."""
    stages = [Stage("a", "1 step"), Stage("b", "1 step")]
    trained(tmp_path / "out", stages[:1])
    card = tmp_path / "out" / "01-a" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nMine.\n", encoding="utf-8")
    assert find_damage(card.parent) is None
    args = TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=4,
        warmup_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    data = tiny.lm_data(16)
    trainer = StagedTrainer(tiny.llama(), args, stages=stages, train_dataset=data, eval_dataset=data)
    trainer.train(resume_from_checkpoint=True)
    assert (tmp_path / "out" / "02-b" / "stage.json").is_file()
    bench(card.parent, shapes=["1x4"], repeats=1, tokens=2, ways=["fp32"], save=True)
    assert "Mine.\n\n<!-- hf_stages: size and speed -->" in text_of(card.parent)


def test_its_lines_run_where_the_run_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(Path("runs/out"), [Stage("a", "1 step")])
    assert 'from_pretrained("runs/out/01-a")' in text_of(tmp_path / "runs" / "out" / "01-a")
