"""Sizes in the plan and in the results."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.stage import Recipe
from hf_stages.layers import stored_size
from hf_stages.planning.model_shapes import shape_of, stage_shapes
from hf_stages.reports.tables.plan_table import plan_dict, plan_table
from hf_stages.reports.tables.result_table import result_table
from hf_stages.transforms import Binarize, ReduceLayers, SplitTernary, Ternarize
from tests.support import tiny
from tests.support.plans import plan_of


@pytest.fixture(scope="module")
def bert():
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(num_hidden_layers=4))


def test_the_plan_says_what_is_touched_and_what_comes_of_it(bert):
    stages = [
        Stage("warm", "2 epochs"),
        Stage("ternary", "2 epochs", transforms=[ReduceLayers([2, 4]), Ternarize(exclude="pooler.dense")]),
        Stage("more", "1 epochs"),
        Stage("split", "1 epochs", transforms=[SplitTernary()]),
    ]
    plan = plan_of(*stages)
    table = plan_table(plan, model=bert)
    flat = " ".join(table.split())
    touched = "word embeddings, blocks (12); full: other embeddings, other layers, head, norms and biases"
    assert flat.count(f"bits 2-bit: {touched}") == 1  # not again where nothing changed
    assert flat.count(f"bits 2 x 1-bit: {touched}") == 1
    shapes, began = stage_shapes(Recipe(stages), bert), shape_of(bert)
    size = shapes["ternary"].stored
    said = (
        f"packed {size.bits_per_weight:.3g} bits per weight, {size.bytes / 2**20:.1f} MiB: 1/{size.ratio():.3g} of "
        f"fp32, 1/{4 * began.params / size.bytes:.3g} of the initial model in fp32 ({began.params / 2**18:.1f} MiB); "
        f"{size.bytes_rest_fp32 / 2**20:.1f} MiB with the rest in fp32"
    )
    assert flat.count(said) == 2, said
    lines = [line.split() for line in table.splitlines()]
    assert ["2", "ternary,", "3", "more"] in lines
    assert ["all", f"{size.weights / 1e6:.3g}M", f"{size.bits_per_weight:.3g}", f"{size.bytes / 2**20:.1f}"] in lines
    assert max(map(len, table.splitlines())) <= 100
    found = plan_dict(plan, shapes, initial=began)["stages"]
    assert found[1]["size"] == json.loads(json.dumps(size.to_dict(began.params)))
    assert (found[0]["size"]["quantized"], found[0]["size"]["initial_fp32_ratio"]) == (False, 2)


def test_a_plan_without_quantization_says_nothing(bert):
    table = plan_table(plan_of(Stage("a", "1 epochs")), model=bert)
    assert "packed" not in table.lower()
    assert "bits" not in table


def test_a_run_leaves_its_size(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no")
    stages = [Stage("warm", "1 steps"), Stage("binary", "1 steps", transforms=[Binarize()])]
    StagedTrainer(tiny.bert(), args, stages=stages, train_dataset=tiny.class_data(8)).train()
    first, second = (json.loads((tmp_path / f / "stage.json").read_text())["size"] for f in ("01-warm", "02-binary"))
    expected = stored_size(Binarize()(tiny.bert()))
    assert second == json.loads(json.dumps(expected.to_dict(first["weights"])))
    assert (first["bits_per_weight"], first["quantized"]) == (16, False)
    head, _, *rows = result_table(tmp_path).splitlines()
    assert head.split()[-3:] == ["bits", "packed", "folder"]
    assert rows[0].split()[-4] == "16"
    assert rows[1].split()[-4] == f"{expected.bits_per_weight:.3g}"
