"""MakeRecurrent on decoders whose norms or weights on disk differ from Llama's."""

import pytest
import torch
import transformers as tf

from hf_stages import MakeRecurrent

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def small(name: str, **more):
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(name, **SIZES, **more)).eval()


@pytest.mark.parametrize(
    ("name", "more"),
    [("mixtral", {"num_local_experts": 2}), ("gemma", {}), ("starcoder2", {}), ("nemotron", {}), ("qwen3", {})],
)
@pytest.mark.parametrize("learned", [True, False])
def test_a_saved_model_loads_with_the_norms_that_it_had(name, more, learned, tmp_path):
    model = MakeRecurrent(1, 2, 1, mean_depth=3.0, learned_norms=learned)(small(name, **more)).eval()
    gains = [key for key, _ in model.named_parameters() if "norm" in key and ".layers." in key]
    assert bool(gains) is learned
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.normal_(1.0, 0.3)
    model.save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-6)


def test_norms_without_weights_are_refused():
    with pytest.raises(ValueError, match="its norms have no weights"):
        MakeRecurrent(1, 2, 1)(small("olmo"))


def test_a_model_in_training_mode_generates_at_its_depth():
    model = MakeRecurrent(1, 2, 1, mean_depth=3.0)(small("llama"))
    ids = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(0))
    expected = model.eval().generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.train().generate(ids, max_new_tokens=4, do_sample=False), expected)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model.eval()(ids).logits)


def test_a_config_that_built_the_model_builds_the_same_again():
    config = tf.LlamaConfig(**SIZES)
    before = config.to_dict()
    model = MakeRecurrent(1, 2, 1, mean_depth=8.0)(tf.LlamaForCausalLM(config))
    assert config.to_dict() == before
    assert len(tf.LlamaForCausalLM(config).model.layers) == 4
    assert model.config is model.model.config is model.model.layers[0].self_attn.config
    assert model.config.num_hidden_layers == 4 + 7 * 2
