"""A weight that a folder lacks is never drawn at random where a run goes on."""

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from hf_stages.models.structure import load_weights


def test_a_weight_that_a_folder_of_renamed_weights_lacks_is_named(tmp_path):
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    model = tf.MixtralForCausalLM(tf.MixtralConfig(**sizes, **heads))
    model.save_pretrained(tmp_path)
    load_weights(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gate = next(name for name in tensors if name.endswith("gate.weight"))
    del tensors[gate]
    save_file(tensors, file, {"format": "pt"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['model.layers.0.mlp.gate.weight'\]"):
        load_weights(model, tmp_path)
    kept = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert "model.layers.0.mlp.gate.weight" in kept
