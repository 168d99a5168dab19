"""Runs through ternary and split layers: strength, folders, cuts, moments."""

from __future__ import annotations

import copy
import json
import types

import pytest
import torch
import transformers as tf
from transformers import TrainerCallback, TrainingArguments, conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.layers import SplitLinear, TernaryLinear
from hf_stages.layers.quantized import WithStrength
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss
from hf_stages.models.optimizer_moments import load as load_moments
from hf_stages.models.structure import latent_split_on_disk
from hf_stages.schedules import Fresh, Resume
from hf_stages.transforms import Binarize, Freeze, InsertSubLN, SplitTernary, Ternarize
from tests.support import tiny
from tests.support.driver import killed_and_resumed
from tests.support.sameness import assert_same, plain

pytestmark = pytest.mark.usefixtures("quick_gc")


def moe():
    config = {key: getattr(tiny.llama_config(), key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    model = tf.MixtralForCausalLM(tf.MixtralConfig(**config, **heads, num_local_experts=4, pad_token_id=0))
    if latent_split_on_disk(Ternarize(["experts"])(copy.deepcopy(model))):
        pytest.skip("this transformers cannot store latent stacks of experts")
    return model


def tied():
    return tiny.llama(tie_word_embeddings=True)


def trainer(out, stages, model=None, data=None, callbacks=(), **args):
    standard = {"per_device_train_batch_size": 8, "learning_rate": 3e-3, "save_strategy": "no", "logging_steps": 1}
    args = TrainingArguments(str(out), report_to="none", use_cpu=True, disable_tqdm=True, **{**standard, **args})
    model = tiny.llama() if model is None else model
    data = tiny.lm_data() if data is None else data
    return StagedTrainer(
        model, args, stages=stages, train_dataset=data, eval_dataset=data.select(range(4)), callbacks=list(callbacks)
    )


TERNARY = Stage("ternary", "3 steps", transforms=[Ternarize()])
SPLIT = Stage("split", "2 steps", transforms=[SplitTernary()], schedule=Fresh(optimizer="carry"))


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("build", [tiny.llama, tiny.bert, moe], ids=["llama", "bert", "experts"])
def test_every_folder_gives_the_same_function(tmp_path, build):
    data = tiny.class_data() if build is tiny.bert else tiny.lm_data()
    full = Ternarize(activations=None)
    stages = [Stage("ternary", "3 steps", transforms=[full]), SPLIT, Stage("rounded", "1 steps")]
    held = {}

    class Hold(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            held[own._stage.planned.name] = logits(model, ids)
            model.train()

    ids = torch.tensor(data[:4]["input_ids"])
    own = trainer(tmp_path, stages, build(), data, [Hold()])
    own.train()
    for number, (name, wanted) in enumerate(held.items(), 1):
        folder = tmp_path / f"{number:02d}-{name}"
        again = StagedTrainer.from_stage(folder).model
        assert torch.equal(logits(again, ids), wanted), name
        stock = type(again).from_pretrained(folder)
        assert torch.allclose(logits(stock, ids), wanted, atol=1e-5), name
        assert any(isinstance(m, WithStrength) for m in again.modules())
    boundary = json.loads((tmp_path / "02-split" / "stage.json").read_text())["boundary"]
    assert 0 <= boundary["deviations"]["SplitTernary"] < 1e-4
    assert abs(boundary["shock"]["loss"]) < 1e-4
    # And with activations, whose range is each token's own.
    again = trainer(tmp_path / "8-bit", [TERNARY], build(), data)
    again.train()
    assert torch.equal(
        logits(StagedTrainer.from_stage(tmp_path / "8-bit" / "01-ternary").model, ids), logits(again.model, ids)
    )


def test_both_halves_take_the_moments_along_unscaled(tmp_path):
    own = trainer(
        tmp_path,
        [TERNARY, Stage("split", "1 steps", transforms=[SplitTernary()], schedule=Fresh(peak=1e-9, optimizer="carry"))],
    )
    taken = {}

    class Take(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            if own._stage.planned.name == "split":
                names = {id(p): n for n, p in model.named_parameters()}
                state = optimizer.optimizer.state if hasattr(optimizer, "optimizer") else optimizer.state
                taken.update({names[id(p)]: {k: v.clone() for k, v in s.items()} for p, s in state.items()})

    own.add_callback(Take())
    own.train()
    before = load_moments(tmp_path / "01-ternary" / "training_state").state
    latents = [name for name in before if name.endswith("weight_latent")]
    assert len(latents) == 15
    for name in latents:
        for half in (f"{name}_1", f"{name}_2"):
            assert all(torch.equal(taken[half][key], value) for key, value in before[name].items()), half


class Strengths(TrainerCallback):
    """What the layers were at in updates and in evaluations."""

    def __init__(self):
        self.seen = []

    def _note(self, what, model):
        found = {
            1.0 if m.strength is None else m.strength.item() for m in model.modules() if isinstance(m, WithStrength)
        }
        self.seen.append((what, *sorted(round(s, 6) for s in found)))

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self._note("update", model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._note("update", model)

    def on_prediction_step(self, args, state, control, model=None, **kwargs):
        self._note("eval", model)


def test_strength_over_the_stage(tmp_path):
    first = Stage("first", "4 steps", transforms=[Ternarize("layers.0", strength=Linear(0, 1))])
    second = Stage("second", "2 steps", transforms=[Ternarize(strength=Linear(0.5, 1))])
    seen = Strengths()
    own = trainer(tmp_path, [first, second], callbacks=[seen], eval_strategy="steps", eval_steps=2)
    own.train()
    # An evaluation sees the strength that the next update begins with; the stage's last one that of the folder.
    assert seen.seen == [
        ("eval", 0.0),
        ("update", 0.0),
        ("update", 0.25),
        ("eval", 0.5),
        ("update", 0.5),
        ("update", 0.75),
        ("eval", 1.0),
        ("eval", 0.5, 1.0),
        ("update", 0.5, 1.0),
        ("update", 0.75, 1.0),
        ("eval", 1.0),
    ]
    assert all(m.strength is None for m in own.model.modules() if isinstance(m, WithStrength))
    folder = tmp_path / "02-second"
    ids = torch.tensor(tiny.lm_data()[:2]["input_ids"])
    assert torch.equal(logits(StagedTrainer.from_stage(folder).model, ids), logits(own.model, ids))


KILLS = [
    ("update", 2, "step 4."),  # within the curve
    ("save_file:half", 1, ".01-ternary.tmp"),
    ("replace:after", 1, "/01-ternary"),  # before the split
    ("update", 2, "step 13."),
]


@pytest.mark.parametrize(
    "kills", [KILLS[::2], pytest.param(KILLS[1::2], marks=pytest.mark.slow)], ids=["cut", "cut-elsewhere"]
)
def test_killed_and_resumed_is_never_cut(driver, whole_run, tmp_path, kills):
    assert killed_and_resumed(driver, tmp_path / "out", kills, quantized=True) == len(kills)
    assert_same(tmp_path / "out", whole_run(quantized=True))


def test_folder_hand_off_equals_memory_hand_off(tmp_path):
    stages = [TERNARY, SPLIT]
    whole = trainer(tmp_path / "whole", stages)
    whole.train()
    trainer(tmp_path / "cut", stages[:1]).train()
    again = trainer(tmp_path / "cut", stages)
    again.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_further_stages_on_a_quantized_folder(tmp_path):
    """As if they had stood in one recipe: a branch builds the folder's model again, a resume goes on, folders load."""
    learned = Ternarize(["layers", "embed_tokens", "lm_head"], method="learned", clip=2.0)
    trainer(tmp_path / "a", [Stage("ternary", "2 steps", transforms=[InsertSubLN(), learned])], tied()).train()
    more = [
        Stage("split", "2 steps", transforms=[SplitTernary()], loss=LogitKL(), teacher=tiny.llama(1)),
        Stage("again", "2 steps", loss=LogitKL(), teacher="stage:split", parents=()),
    ]

    def later(out, stages=more):
        model = StagedTrainer.from_stage(tmp_path / "a" / "01-ternary").model
        model.model.norm.weight.requires_grad_(False)
        own = trainer(out, stages, model)
        own.probe_teacher = False
        return own

    assert later(tmp_path / "b").plan()["again"].steps == 2
    whole = later(tmp_path / "b")
    whole.train()
    ids = torch.tensor(tiny.lm_data()[:2]["input_ids"])
    assert isinstance(StagedTrainer.from_stage(tmp_path / "b" / "01-split").model.lm_head, SplitLinear)
    loaded = StagedTrainer.from_stage(tmp_path / "b" / "02-again").model
    assert torch.equal(logits(loaded, ids), logits(whole.model, ids))
    assert isinstance(loaded.lm_head, TernaryLinear)
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    later(tmp_path / "c", more[:1]).train()
    resumed = later(tmp_path / "c")
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    last = trainer(tmp_path / "d", [SPLIT], whole.model)  # in the same process, without a folder
    last.train()
    loaded = StagedTrainer.from_stage(tmp_path / "d" / "01-split").model
    assert torch.equal(logits(loaded, ids), logits(last.model, ids))


def test_a_model_quantized_by_hand_is_not_taken_for_a_plain_one(tmp_path):
    stages = [Stage("one", "1 steps", loss=TaskLoss()), Stage("two", "1 steps", parents=())]
    with pytest.raises(ValueError, match="stage 'two': parents: this model cannot be built a second time"):
        trainer(tmp_path, stages, Ternarize()(tiny.llama())).plan()
    trainer(tmp_path, [stages[0], SPLIT], Ternarize()(tiny.llama())).train()
    with pytest.raises(
        ValueError, match="LlamaForCausalLM, which cannot be built from a config; load it as it was made"
    ):
        StagedTrainer.from_stage(tmp_path / "02-split")


def test_experts_that_transformers_would_tear_are_refused(tmp_path, monkeypatch):
    """As 5.19 does, whose patterns end anywhere in a name: the run would end in a folder that nothing reads."""
    model = moe()
    known = conversion_mapping.get_model_conversion_mapping(model)
    tearing = WeightConverter(
        ["experts.*.w1.weight_latent", "experts.*.w3.weight_latent"],
        "experts.gate_up_proj_latent",
        [MergeModulelist(dim=0), Concatenate(dim=1)],
    )
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [*known, tearing])
    with pytest.raises(
        ValueError, match=r"stage 'ternary': model.layers.0.mlp.experts.gate_up_proj_latent: .* in pieces"
    ):
        trainer(tmp_path, [TERNARY], model).plan()
    trainer(tmp_path, [Stage("ternary", "1 steps", transforms=[Ternarize(exclude="experts")])], model).plan()


@pytest.mark.parametrize("build", [tiny.llama, moe], ids=["llama", "experts"])
def test_checkpoints_and_the_best_model(tmp_path, build):
    """Of experts a checkpoint's names are others than the model's: Trainer alone would go on with random ones."""
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    }
    best |= {"metric_for_best_model": "loss", "greater_is_better": True}  # so that it is not the last
    stages = [Stage("ternary", "3 steps", transforms=[Ternarize()], args=best)]
    whole = trainer(tmp_path / "whole", stages, build(), learning_rate=0.5)
    whole.train()
    assert whole.state.best_global_step < 3
    logged = [log["eval_loss"] for log in whole.state.log_history if "eval_loss" in log]
    assert plain(tmp_path / "whole" / "01-ternary" / "stage.json")["metrics"]["eval_loss"] == pytest.approx(
        max(logged), rel=1e-6
    )

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", stages, build(), learning_rate=0.5, callbacks=[Stop()]).train()
    again = trainer(tmp_path / "cut", stages, build(), learning_rate=0.5)
    again.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_best_model_of_a_curve_is_refused(tmp_path):
    stage = Stage(
        "a",
        "4 steps",
        transforms=[Ternarize(strength=Linear(0, 1))],
        args={
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
        },
    )
    with pytest.raises(
        ValueError, match=r"stage 'a': load_best_model_at_end: .* before Ternarize reached full strength"
    ):
        trainer(tmp_path, [stage]).plan()


def test_latents_decay_and_learned_scales_do_not(tmp_path):
    own = trainer(
        tmp_path,
        [Stage("a", "1 steps", transforms=[Ternarize(method="learned", clip=2.0)])],
        tiny.bert(),
        tiny.class_data(),
    )
    own.train()
    decayed = set(own.get_decay_parameter_names(own.model))
    names = {name for name, _ in own.model.named_parameters()}
    left = {name.rpartition(".")[2] for name in names - decayed}
    assert left == {"bias", "weight", "weight_scale", "activation_clip"}
    assert not any("_latent" in name for name in names - decayed)
    assert {n for n in names - decayed if n.endswith(".weight")} == {n for n in names if "LayerNorm.weight" in n}


def test_checkpointed_activations_change_nothing(tmp_path):
    ends = []
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        own = trainer(tmp_path / name, [TERNARY, SPLIT], moe(), gradient_checkpointing=checkpointed)
        own.train()
        ends.append(own.model.state_dict())
    for name, value in ends[0].items():
        assert torch.allclose(ends[1][name], value, atol=1e-6), name


@pytest.mark.parametrize("build", [tied, moe], ids=["tied", "experts"])
def test_bf16_with_checkpointed_activations(tmp_path, build):
    """Autocast and recomputation together: the same finite gradients for every latent, which stays in float32."""
    which = Ternarize(["layers", "embed_tokens", "lm_head"] if build is tied else None, method="learned", clip=2.0)
    stages = [Stage("a", "1 steps", transforms=[which]), Stage("b", "1 steps", transforms=[SplitTernary()])]

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found[-1].update(
                {f"{state.global_step} {n}": (p.dtype, p.grad.clone()) for n, p in model.named_parameters()}
            )

    found = []
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        found.append({})
        how = {"gradient_checkpointing": checkpointed, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        trainer(tmp_path / name, stages, build(), callbacks=[Gradients()], bf16=True, **how).train()
    plain, again = found
    assert plain.keys() == again.keys()
    for name, (dtype, gradient) in plain.items():
        assert dtype == again[name][0] == torch.float32, name
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(gradient, again[name][1]), name


def test_quantized_stages_teach(tmp_path):
    """A chain of teachers over branches: each is the model of its stage's folder, quantized as it was."""
    stages = [
        Stage("full", "1 steps"),
        Stage("ternary", "2 steps", transforms=[Ternarize()], loss=LogitKL(), teacher="stage:full"),
        Stage("split", "1 steps", transforms=[SplitTernary()], loss=LogitKL() + HiddenMSE(), teacher="stage:ternary"),
        Stage("binary", "1 steps", transforms=[Binarize()], loss=LogitKL(), teacher="stage:split", parents="full"),
        Stage("on", "1 steps", loss=HiddenMSE(), teacher="stage:binary", parents="split"),
    ]
    ids, taught = torch.tensor(tiny.lm_data()[:2]["input_ids"]), {}

    class Teachers(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if own.stage_teacher is not None:
                taught[own._stage.planned.stage.teacher] = logits(own.stage_teacher.model, ids)

    own = trainer(tmp_path, stages, callbacks=[Teachers()])
    own.probe_teacher = False
    own.train()
    assert len(taught) == 4
    for number, stage in enumerate(stages[:-1], 1):
        model = StagedTrainer.from_stage(tmp_path / f"{number:02d}-{stage.name}").model
        assert torch.equal(logits(model, ids), taught[f"stage:{stage.name}"]), stage.name


def test_what_would_fail_fails_in_the_plan(tmp_path):
    stages = [TERNARY, Stage("again", "1 steps", transforms=[SplitTernary(), Freeze("no_such")], schedule=Resume())]
    with pytest.raises(ValueError, match=r"stage 'again': transforms\[1\] Freeze: .*matches nothing"):
        trainer(tmp_path, stages).plan()
    model = tiny.llama()
    model.hf_quantizer = types.SimpleNamespace(is_trainable=True)
    with pytest.raises(
        ValueError, match=r"stage 'ternary': transforms\[0\]: Ternarize: expected full-precision weights"
    ):
        trainer(tmp_path, [TERNARY], model).plan()
    assert not list(tmp_path.iterdir())
