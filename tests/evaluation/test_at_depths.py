"""Evaluation at several depths of a recurrent model: right numbers, resumed too, refused where there is no depth."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForQuestionAnswering

from hf_stages import Above, AtDepths, Below, Expect, Stage, StagedTrainer
from hf_stages.core.stage import Recipe
from hf_stages.data.sample_text import byte_tokenizer
from hf_stages.layers.recurrent import at_depth
from hf_stages.recipes import dump, load, loads
from hf_stages.reports.run_folder import read_run
from hf_stages.reports.run_report import run_report
from hf_stages.training.from_recipe import build_trainer
from hf_stages.transforms import MakeRecurrent
from tests.evaluation.ragged_rows import padded, ragged
from tests.support import tiny
from tests.support.runs import StopAt, staged, summary

LOOPED = MakeRecurrent(1, 1, 1, mean_depth=2, norm="pre")
DEPTHS = (1, 2, 5)


def run_of(out, evaluated, *, stages=None, args=None, **options) -> StagedTrainer:
    stages = stages or [Stage("a", "4 steps", transforms=[LOOPED])]
    args = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3, **(args or {})}
    model = options.pop("model", None) or tiny.llama(num_hidden_layers=3)
    return staged(out, stages, model=model, args=args, eval_dataset=evaluated, **options)


def loss_by_hand(model, rows, depth: int) -> float:
    """Over all targets, one row at a time, without a batch or padding."""
    total, count = 0.0, 0
    with torch.no_grad(), at_depth(model.eval(), depth):
        for row in rows:
            logs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            for place, target in enumerate(row["labels"][1:]):
                if target != -100:
                    total, count = total - logs[place, target].item(), count + 1
    return total / count


def test_each_depth_has_the_loss_that_the_model_has_there(tmp_path):
    rows = ragged(11, seed=2)
    trainer = run_of(tmp_path, AtDepths(Dataset.from_list(rows), DEPTHS), data_collator=padded)
    trainer.train()
    found = summary(tmp_path, "01-a")["metrics"]
    expected = {depth: loss_by_hand(trainer.model, rows, depth) for depth in DEPTHS}
    assert {d: found[f"eval_loss_at_{d}"] for d in DEPTHS} == pytest.approx(expected, rel=1e-6)
    assert found["eval_loss"] == pytest.approx(expected[2], rel=1e-6)  # the model's own depth: its mean
    assert len({round(loss, 6) for loss in expected.values()}) == len(DEPTHS)  # else the depth could be ignored
    for depth, loss in expected.items():
        assert found[f"eval_ppl_at_{depth}"] == pytest.approx(math.exp(loss), rel=1e-6)


def test_bits_per_byte_follow_from_the_loss(tmp_path):
    data = Dataset.from_list([{"input_ids": [70 + i] * 8, "labels": [70 + i] * 8} for i in range(5)])
    model = tiny.llama(num_hidden_layers=3, vocab_size=258)
    trainer = run_of(
        tmp_path, AtDepths(data, (1, 3)), model=model, train_dataset=data, processing_class=byte_tokenizer()
    )
    trainer.train()
    found = summary(tmp_path, "01-a")["metrics"]
    for depth in (1, 3):  # a token is a byte here
        bits = found[f"eval_loss_at_{depth}"] / math.log(2)
        assert found[f"eval_bits_per_byte_at_{depth}"] == pytest.approx(bits, rel=1e-6)


def test_measuring_at_depths_changes_nothing_of_the_training(tmp_path):
    data = tiny.lm_data()
    weights = []
    for name, evaluated in (("plain", data), ("depths", AtDepths(data, (1, 7)))):
        trainer = run_of(tmp_path / name, evaluated)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_resumed_run_measures_what_the_uncut_one_does(tmp_path):
    histories = []
    for name in ("uncut", "cut"):
        sets, args = AtDepths(tiny.lm_data(), (1, 4)), {"save_strategy": "steps", "save_steps": 2}
        trainer = run_of(tmp_path / name, sets, args=args)
        if name == "cut":
            trainer.add_callback(StopAt(2))
            trainer.train()
            trainer = run_of(tmp_path / name, sets, args=args)
        trainer.train(resume_from_checkpoint=name == "cut")
        histories.append([_at_depths(log) for log in trainer.state.log_history])
    assert histories[0] == histories[1]
    assert sum(map(bool, histories[0])) == 3  # at the start and twice in the stage


def test_metrics_by_depth_are_in_starts_logs_boundaries_and_reports(tmp_path):
    sets = {"prose": AtDepths(tiny.lm_data(), (1, 4)), "plain": tiny.lm_data()}
    stages = [Stage("a", "2 steps", transforms=[LOOPED]), Stage("b", "2 steps")]
    trainer = run_of(tmp_path, sets, stages=stages)
    trainer.train()
    logged = {key for log in trainer.state.log_history for key in log}
    assert {"eval_prose_ppl_at_4", "start_prose_loss_at_1", "eval_plain_loss"} <= logged
    assert not any(key.startswith("eval_plain_ppl_at") for key in logged)
    assert "ppl_at_4" in summary(tmp_path, "02-b")["domains"]["prose"]
    report = run_report(read_run(tmp_path))
    assert "Perplexity by depth" in report
    assert "loss_at_4" not in report
    card = (tmp_path / "02-b" / "README.md").read_text()
    assert "| eval_prose_ppl |" in card


def test_a_trainer_of_trls_measures_depths_and_counts_its_own_metrics_as_without_them(tmp_path):
    pytest.importorskip("trl")
    from tests.support import sft

    found = []
    for name, evaluated in (("plain", sft.prose()), ("depths", AtDepths(sft.prose(), (1, 4)))):
        trainer = sft.StagedSFT(
            sft.model(num_hidden_layers=3),
            sft.arguments(tmp_path / name, eval_strategy="steps", eval_steps=1),
            stages=[Stage("a", "1 steps", transforms=[LOOPED])],
            train_dataset=sft.prose(),
            eval_dataset=evaluated,
            processing_class=sft.TOKENIZER,
        )
        trainer.train()
        found.append(next(log for log in trainer.state.log_history if "eval_loss" in log))
    plain, deep = found
    assert {"eval_loss_at_1", "eval_loss_at_4"} <= deep.keys()
    for metric in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy", "eval_num_tokens"):
        assert plain[metric] == deep[metric]


def test_gates_read_a_depth(tmp_path):
    stages = [Stage("a", "8 steps", transforms=[LOOPED], gates=[Below("eval_ppl_at_4", 1e9)])]
    trainer = run_of(tmp_path, AtDepths(tiny.lm_data(), (1, 4)), stages=stages)
    trainer.train()
    assert summary(tmp_path, "01-a")["steps"] == 2


@pytest.mark.parametrize("gate", [Below("eval_ppl_at_3", 5), Above("eval_prose_loss_at_4", 5), Expect("eval_ppl_at_9")])
def test_a_gate_on_a_depth_that_nobody_measures_is_refused(tmp_path, gate):
    stages = [Stage("a", "8 steps", transforms=[LOOPED], gates=[gate])]
    with pytest.raises(ValueError, match=r"gates\[0\].*is never measured.*AtDepths"):
        run_of(tmp_path, AtDepths(tiny.lm_data(), (1, 4)), stages=stages).plan()


def test_the_best_model_is_that_of_the_least_perplexity_at_a_depth(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "ppl_at_4", "save_strategy": "steps"}
    best |= {"save_steps": 2}
    evaluated = AtDepths(tiny.lm_data(), (1, 4))
    with pytest.raises(ValueError, match=r"'ppl_at_4': less is better.*greater_is_better=False"):
        run_of(tmp_path / "trap", evaluated, args=best).plan()
    wrong = {**best, "metric_for_best_model": "ppl_at_8", "greater_is_better": False}
    with pytest.raises(ValueError, match=r"metric_for_best_model: eval_ppl_at_8 is never measured.*at 1, 4"):
        run_of(tmp_path / "wrong", evaluated, args=wrong).plan()
    trainer = run_of(tmp_path / "right", evaluated, args={**best, "greater_is_better": False, "learning_rate": 1e-1})
    trainer.train()
    logged = [log["eval_ppl_at_4"] for log in trainer.state.log_history if "eval_ppl_at_4" in log]
    assert summary(tmp_path / "right", "01-a")["metrics"]["eval_ppl_at_4"] == pytest.approx(min(logged), rel=1e-6)


def test_a_model_without_recurrence_is_refused_by_the_plan(tmp_path):
    trainer = run_of(tmp_path, {"prose": AtDepths(tiny.lm_data())}, stages=[Stage("a", "2 steps")])
    with pytest.raises(ValueError, match=r"stage 'a': eval_dataset: AtDepths: 'prose'.*no recurrent part"):
        trainer.plan()


def test_a_loss_of_several_means_is_refused_before_the_first_step(tmp_path):
    model = LlamaForQuestionAnswering(LlamaConfig(**{**tiny.LLAMA_SIZES, "num_hidden_layers": 3}))
    rows = [{"input_ids": [5, 6, 7, 8], "start_positions": 1, "end_positions": 2 + i % 2} for i in range(6)]
    data = Dataset.from_list(rows)
    trainer = run_of(tmp_path, AtDepths(data, (1, 4)), model=model, train_dataset=data)
    with pytest.raises(ValueError, match=r"LlamaForQuestionAnswering has several parts.*not measured by depth"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_later_stages_depths_do_not_trouble_a_branch_without_recurrence(tmp_path):
    stages = [
        Stage("a", "1 steps", eval_dataset={"plain": tiny.lm_data()}),
        Stage("b", "1 steps", transforms=[LOOPED], eval_dataset={"deep": AtDepths(tiny.lm_data(), (1, 4))}),
        Stage("c", "1 steps", parents="a", eval_dataset={"plain": tiny.lm_data()}),
    ]
    run_of(tmp_path, None, stages=stages, args={"eval_strategy": "no"}).train()
    assert "loss_at_4" in summary(tmp_path, "02-b")["domains"]["deep"]
    deep = summary(tmp_path, "03-c")["domains"]["deep"]
    assert "loss" in deep
    assert "loss_at_4" not in deep


def test_trainer_without_stages_refuses_depths(tmp_path):
    with pytest.raises(ValueError, match="AtDepths is expected together with stages"):
        staged(tmp_path, None, eval_dataset=AtDepths(tiny.lm_data()))


@pytest.mark.parametrize("depths", [(), (0,), (1, 1), (2.0,), "4", 4, (True,)])
def test_depths_must_be_different_counts(depths):
    with pytest.raises(ValueError, match="AtDepths: depths: expected"):
        AtDepths("prose", depths)


def test_a_recipe_holds_depths():
    text = """
    sources: {prose: {path: json, data_files: prose.jsonl, text: text, chunk: true}}
    train_dataset: prose
    eval_dataset: {prose: {use: AtDepths, dataset: prose, depths: [8, 1]}}
    stages: [{name: a, until: 2 steps}, {name: b, until: 2 steps, eval_dataset: {use: AtDepths, dataset: prose}}]
    """
    recipe = loads(text)
    assert recipe.eval_dataset == {"prose": AtDepths("prose", (1, 8))}
    assert recipe["b"].eval_dataset.depths == (1, 4, 8, 16, 32, 64)
    assert loads(dump(recipe)) == recipe


def test_a_recipe_file_is_run_on_the_source_that_it_names(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    lines = [json.dumps({"text": f"{number} was here, and {number} went."}) for number in range(30)]
    (tmp_path / "prose.jsonl").write_text("\n".join(lines))
    sizes = json.dumps({**tiny.LLAMA_SIZES, "model_type": "llama", "vocab_size": 258, "num_hidden_layers": 3})
    (tmp_path / "run.yaml").write_text(f"""
    model: {{config: {sizes}, auto_class: AutoModelForCausalLM}}
    tokenizer: tokenizer
    args: {{output_dir: {tmp_path / "out"}, use_cpu: true, report_to: none, save_strategy: "no", disable_tqdm: true}}
    sources: {{prose: {{path: json, data_files: prose.jsonl, text: text, chunk: true, max_length: 16}}}}
    train_dataset: prose
    data_collator: {{use: DataCollatorForLanguageModeling, mlm: false}}
    eval_dataset: {{prose: {{use: AtDepths, dataset: prose, depths: [1, 3]}}}}
    stages: [{{name: a, until: 2 steps, transforms: [{{use: MakeRecurrent, prelude: 1, core: 1, coda: 1}}]}}]
    """)
    build_trainer(load(tmp_path / "run.yaml")).train()
    measured = json.loads((tmp_path / "out" / "01-a" / "stage.json").read_text())["domains"]["prose"]
    assert {"loss_at_1", "ppl_at_3", "bits_per_byte_at_3"} <= measured.keys()


def test_a_recipe_is_told_where_a_source_is_unknown_or_depths_are_no_data_to_train_on():
    head = "sources: {prose: {path: json, data_files: prose.jsonl}}\nstages: [{name: a, until: 2 steps}]\n"
    with pytest.raises(ValueError, match=r"eval_dataset.*no source is called 'prise'"):
        loads(head + "eval_dataset: {use: AtDepths, dataset: prise}\n")
    with pytest.raises(ValueError, match=r"train_dataset.*AtDepths is for evaluation"):
        loads(head + "train_dataset: {use: AtDepths, dataset: prose}\n")


def test_rows_in_memory_are_recorded_by_their_fingerprint():
    written = json.loads(json.dumps(_written(AtDepths([{"input_ids": [1]}], (1, 2)))))
    assert written["depths"] == [1, 2]
    assert set(written["dataset"]) == {"in_memory", "fingerprint"}


def _written(evaluated) -> dict:
    from hf_stages.recipes import to_dict

    return to_dict(Recipe([Stage("a", "1 steps", eval_dataset=evaluated)]))["stages"][0]["eval_dataset"]


def _at_depths(log: dict) -> dict:
    return {key: value for key, value in log.items() if "_at_" in key}
