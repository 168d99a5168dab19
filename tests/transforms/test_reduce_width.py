from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as tf
from transformers.pytorch_utils import Conv1D

from hf_stages import Recipe, Stage, StagedTrainer
from hf_stages.layers import stacks_of
from hf_stages.losses import AttentionMSE, AttentionRelation, HiddenMSE
from hf_stages.planning.model_shapes import stage_shapes
from hf_stages.transforms import AddLora, ReduceWidth
from tests.support import tiny as models

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
BART = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
MODELS = {
    "bert": models.bert,
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(vocab_size=64, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
    ),
    "vit": models.vit,
    "llama": models.llama,
    "llama_biased": lambda: models.llama(num_key_value_heads=4, attention_bias=True, mlp_bias=True),
    "llama_one_key": lambda: models.llama(num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)),
    "t5": models.t5,
    "t5_gated": lambda: models.t5(feed_forward_proj="gated-gelu"),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(vocab_size=64, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, **BART)
    ),
}
NOT_SAID = ("bert", "roberta", "distilbert", "gpt2", "bart")
"""A head is as wide as the config's hidden size and number of heads make it."""


def built(kind):
    torch.manual_seed(0)
    model = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def outputs(model):
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    batch = (
        {"pixel_values": torch.linspace(0, 1, 2 * 3 * 256).view(2, 3, 16, 16)}
        if model.config.model_type == "vit"
        else {"input_ids": ids}
    )
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    with torch.no_grad():
        return model(**batch).logits


def columns(module):
    """(inputs, outputs)"""
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def silenced(full, narrow):
    """The full model with what the narrow one lacks made zero: inputs of output projections."""
    count = 0
    for name, module in narrow.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        whole, kept = columns(full.get_submodule(name)), columns(module)
        if len(kept) < len(whole):
            there = (whole[:, None] == kept[None]).all(-1).any(1)
            assert there.sum() == len(kept) == len(whole) // 2
            with torch.no_grad():
                whole[~there] = 0
            count += 1
    return count


@pytest.mark.parametrize("kind", MODELS)
def test_is_the_model_with_the_others_silenced(kind):
    full, model = built(kind), built(kind)
    names, before = [n for n, _ in model.named_parameters()], outputs(model)
    assert ReduceWidth(0.5)(model) is model
    assert [n for n, _ in model.named_parameters()] == names
    blocks = {stack: len(blocks) for stack, (_, blocks) in stacks_of(model).items()}
    # Each block has an attention and a feed-forward part; decoders attend to the encoder too.
    assert silenced(full, model) == 2 * sum(blocks.values()) + blocks.get("decoder", 0)
    assert torch.allclose(outputs(model), outputs(full), atol=1e-5)
    assert not torch.allclose(outputs(model), before, atol=1e-2)
    model.train()
    ids = torch.ones(1, 3, dtype=torch.long)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    batch = {"pixel_values": torch.ones(1, 3, 16, 16)} if kind == "vit" else {"input_ids": ids, **more}
    model(**batch).logits.sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", MODELS)
def test_stock_loads_it_or_refuses_it(kind, tmp_path):
    model = ReduceWidth(0.5)(built(kind))
    config = model.config.get_text_config()
    assert (config.num_attention_heads, config.hidden_size, config.head_dim) == (2, 32, 8)
    model.save_pretrained(tmp_path)
    if kind in NOT_SAID:
        with pytest.raises(RuntimeError, match="mismatch"):
            type(model).from_pretrained(tmp_path)
        return
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded), outputs(model))
    for name, module in loaded.named_modules():
        mine = model.get_submodule(name)
        assert _numbers(module) == _numbers(mine), name
        if hasattr(module, "config"):  # T5's stacks hold copies
            assert _numbers(module.config) == _numbers(mine.config), name


@pytest.mark.parametrize("kind", MODELS)
def test_neurons_alone_are_always_said(kind, tmp_path):
    model = ReduceWidth(ffn=0.25)(built(kind))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.num_parameters() < built(kind).num_parameters()
    assert torch.equal(outputs(loaded), outputs(model))


def _numbers(module):
    return {key: value for key, value in vars(module).items() if type(value) is int}


def test_the_most_important_stay():
    full = built("bert")
    model = ReduceWidth(0.25)(copy.deepcopy(full))
    for old, new in zip(full.bert.encoder.layer, model.bert.encoder.layer, strict=True):
        into, out = old.intermediate.dense, old.output.dense
        best = (into.weight.norm(dim=1) * out.weight.norm(dim=0)).topk(16).indices.sort().values
        assert torch.equal(new.intermediate.dense.weight, into.weight[best])
        assert torch.equal(new.intermediate.dense.bias, into.bias[best])
        assert torch.equal(new.output.dense.weight, out.weight[:, best])
        mine, theirs = old.attention.self, new.attention.self
        own = [p.weight.view(4, 8, 32).flatten(1).norm(dim=1) for p in (mine.query, mine.key, mine.value)]
        columns = old.attention.output.dense.weight.view(32, 4, 8).transpose(0, 1).flatten(1).norm(dim=1)
        head = (own[0] * own[1] * own[2] * columns).argmax()
        rows = slice(8 * head, 8 * head + 8)
        assert torch.equal(theirs.value.weight, mine.value.weight[rows])
        assert torch.equal(theirs.key.bias, mine.key.bias[rows])
        assert torch.equal(new.attention.output.dense.weight, old.attention.output.dense.weight[:, rows])
    first = ReduceWidth(0.25, importance="first")(copy.deepcopy(full)).bert.encoder.layer[1]
    assert torch.equal(first.attention.self.query.weight, full.bert.encoder.layer[1].attention.self.query.weight[:8])
    assert torch.equal(first.output.dense.weight, full.bert.encoder.layer[1].output.dense.weight[:, :16])


def test_a_neurons_gate_counts_for_its_importance():
    model = built("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[:16] *= 1e-3
    kept = ReduceWidth(ffn=0.75)(copy.deepcopy(model)).model.layers[0].mlp
    assert torch.equal(kept.up_proj.weight, model.model.layers[0].mlp.up_proj.weight[16:])


def test_queries_stay_with_their_keys():
    """Four queries of two keys: half of them is one key with both; three of four would leave one key short."""
    full = built("llama")
    with torch.no_grad():
        for layer in full.model.layers:
            layer.self_attn.k_proj.weight[8:] *= 10
    whole = ReduceWidth(heads=0.5)(copy.deepcopy(full)).model.layers[1].self_attn
    assert torch.equal(whole.k_proj.weight, full.model.layers[1].self_attn.k_proj.weight[8:])
    assert torch.equal(whole.q_proj.weight, full.model.layers[1].self_attn.q_proj.weight[16:])
    assert whole.num_key_value_groups == 2
    one_key = ReduceWidth(heads=0.5)(built("llama_one_key"))
    assert (one_key.config.num_attention_heads, one_key.config.num_key_value_heads) == (2, 1)
    assert one_key.model.layers[0].self_attn.num_key_value_groups == 2
    assert one_key.lm_head.weight is one_key.model.embed_tokens.weight


def test_shared_position_biases_keep_one_choice_for_all_blocks():
    full = built("t5")
    stay = torch.tensor([0, 3])
    rows = (stay[:, None] * 8 + torch.arange(8)).flatten()
    with torch.no_grad():  # together the two outweigh what either block would choose by itself
        first, second = (block.layer[0].SelfAttention for block in full.encoder.block)
        first.o.weight[:, 0:8] *= 100
        first.o.weight[:, 8:16] *= 2
        second.o.weight[:, 24:32] *= 100
        second.o.weight[:, 16:24] *= 2
    model = ReduceWidth(heads=0.5)(copy.deepcopy(full))
    for old, new in zip(full.encoder.block, model.encoder.block, strict=True):
        assert torch.equal(new.layer[0].SelfAttention.q.weight, old.layer[0].SelfAttention.q.weight[rows])
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    assert torch.equal(bias.weight, first.relative_attention_bias.weight[:, stay])
    assert bias.embedding_dim == 2


def test_a_reduced_model_can_be_reduced_again():
    model = ReduceWidth(ffn=0.5)(ReduceWidth(heads=0.5)(ReduceWidth(heads=0.5)(built("bert"))))
    attention = model.bert.encoder.layer[0].attention.self
    assert (attention.query.out_features, attention.num_attention_heads, attention.attention_head_size) == (8, 1, 8)
    assert (attention.all_head_size, model.config.num_attention_heads, model.config.intermediate_size) == (8, 1, 32)
    assert torch.isfinite(outputs(model)).all()


def test_a_number_that_does_not_divide_the_hidden_size():
    """Saving would fail where the config checks it. BERT's does not: the folder is ours, and stock refuses it."""
    model = models.llama(num_key_value_heads=4)
    with pytest.raises(ValueError, match=r"multiple of the number of attention heads \(3\); take another fraction"):
        ReduceWidth(heads=0.75)(model)
    assert model.config.num_attention_heads == 4
    assert ReduceWidth(heads=0.75)(built("bert")).bert.encoder.layer[0].attention.self.key.out_features == 24


def test_a_reduced_model_generates_with_and_without_a_cache():
    for kind in ("llama", "gpt2", "t5"):
        model = ReduceWidth(0.5)(built(kind))
        ids = torch.tensor([[5, 6, 7]])
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 63, "pad_token_id": 0}
        assert torch.equal(*(model.generate(ids, use_cache=use, **options) for use in (True, False)))


def test_one_of_two_stacks_can_be_reduced():
    model = ReduceWidth(0.5, stack="decoder")(built("bart"))
    assert (model.config.encoder_attention_heads, model.config.decoder_attention_heads) == (4, 2)
    assert model.model.encoder.layers[0].self_attn.q_proj.out_features == 32
    assert model.model.decoder.layers[0].encoder_attn.num_heads == 2
    assert torch.isfinite(outputs(model)).all()
    with pytest.raises(ValueError, match=r"one number for encoder.block and decoder.block: leave stack='encoder' out"):
        ReduceWidth(0.5, stack="encoder")(built("t5"))


def test_on_the_meta_device_and_in_the_plan():
    with torch.device("meta"):
        skeleton = models.bert()
    shapes = stage_shapes(Recipe([Stage("half", "1 steps", transforms=[ReduceWidth(0.5)])]), skeleton)
    real = ReduceWidth(0.5)(built("bert"))
    assert shapes["half"].params == sum(p.numel() for p in real.parameters())
    # Of each block: half of the four attention projections and of the two others, with the biases of what is cut.
    per_block = 4 * 16 * 32 + 3 * 16 + 2 * 32 * 32 + 32
    assert sum(p.numel() for p in skeleton.parameters()) - shapes["half"].params == 2 * per_block


def test_frozen_and_half_precision_stay_so():
    model = built("bert").to(torch.bfloat16)
    model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad_(False)
    ReduceWidth(0.5)(model)
    assert not model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad
    assert model.bert.encoder.layer[1].intermediate.dense.weight.requires_grad
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("value", [0, -0.5, 1.5, True, "half", float("nan")])
@pytest.mark.parametrize("key", ["width", "heads", "ffn"])
def test_bad_fractions_are_refused_at_once(key, value):
    with pytest.raises(ValueError, match=f"ReduceWidth: {key}: expected a fraction"):
        ReduceWidth(**{key: value})


def test_bad_values_are_refused_at_once():
    with pytest.raises(ValueError, match=r"expected width= .* got none"):
        ReduceWidth()
    with pytest.raises(ValueError, match="importance: expected one of"):
        ReduceWidth(0.5, importance="gradient")


def _mixtral():
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2))


REFUSED = {
    "experts": (_mixtral, "MixtralSparseMoeBlock: neurons of experts are not reduced; leave them: ffn=1.0"),
    "heads_side_by_side": (
        lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
        "GPTNeoXLayer.* whose layout is known; leave its heads: heads=1.0",
    ),
    "norms_over_all_heads": (
        lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**SIZES)),
        r"q_norm.weight: it would have the shape \[32\], the reduced config would build \[16\]",
    ),
    "biases_outside": (
        lambda: tf.MPNetForMaskedLM(tf.MPNetConfig(**SIZES)),
        r"encoder.relative_attention_bias.weight: it would have the shape \[32, 4\]",
    ),
    "shared_layers": (
        lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(**SIZES, embedding_size=16)),
        "its layers share their weights",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_known_is_refused_and_left_as_it_was(kind):
    make, message = REFUSED[kind]
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"ReduceWidth: {type(model).__name__}: .*{message}"):
        ReduceWidth(0.5)(model)
    assert model.config.to_dict() == before.config.to_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_heads_between_experts():
    model = ReduceWidth(heads=0.5)(_mixtral().eval())
    assert model.model.layers[0].self_attn.o_proj.in_features == 16
    assert torch.isfinite(outputs(model)).all()


def test_refusals_name_the_model(tiny):
    with pytest.raises(ValueError, match="ReduceWidth: expected a transformers model, got a Linear"):
        ReduceWidth(0.5)(torch.nn.Linear(2, 2))
    model = built("bert")
    model.bert.encoder.layer[0].output.dense.weight_latent = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"dense.weight_latent belongs to a quantized layer: reduce the width before"):
        ReduceWidth(0.5)(model)
    model = built("bert")
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="its weights are quantized"):
        ReduceWidth(0.5)(model)
    model = built("bert")
    model.bert.encoder.layer[1].output.dense = model.bert.encoder.layer[0].output.dense
    with pytest.raises(ValueError, match=r"layer.0.output.dense.weight is also bert.encoder.layer.1"):
        ReduceWidth(0.5)(model)
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="ReduceWidth: expected a model without adapters"):
        ReduceWidth(0.5)(AddLora(2)(tiny("llama")))


def test_it_is_a_plain_value():
    part = ReduceWidth(0.5, heads=0.25)
    assert part == pickle.loads(pickle.dumps(part)) == eval(repr(part))
    assert hash(part)
    assert not part.keeps_function
    whole = ReduceWidth(1.0)
    assert whole.keeps_function
    model, before = built("bert"), outputs(built("bert"))
    assert torch.equal(outputs(whole(model)), before)


def _trainer(folder, **options):
    args = tf.TrainingArguments(
        folder, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    return StagedTrainer(built("bert"), args, train_dataset=models.class_data(8), teacher=built("bert"), **options)


def test_a_stage_with_it_trains_and_its_folder_loads(tmp_path):
    stages = [
        Stage("half", "2 steps", transforms=[ReduceWidth(0.5)], loss=HiddenMSE() + AttentionRelation()),
        Stage("again", "1 steps"),
    ]
    trainer = _trainer(tmp_path, stages=stages)
    trainer.train()
    model = StagedTrainer.from_stage(tmp_path / "02-again", trainer.args).model.eval()
    assert model.bert.encoder.layer[0].attention.self.num_attention_heads == 2
    assert torch.equal(outputs(model), outputs(trainer.model.eval()))
    with pytest.raises(RuntimeError, match="mismatch"):
        tf.BertForSequenceClassification.from_pretrained(tmp_path / "02-again")


def test_maps_of_all_heads_are_refused_with_what_to_use(tmp_path):
    stages = [Stage("half", "2 steps", transforms=[ReduceWidth(0.5)], loss=AttentionMSE())]
    with pytest.raises(ValueError, match=r"2 attention heads, the teacher 4; use AttentionRelation.*attention=0"):
        _trainer(tmp_path, stages=stages).train()
