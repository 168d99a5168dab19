import pytest
import torch

from hf_stages.models.model_source import ModelSource

TINY = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}


def test_random_weights_come_from_torchs_generator():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(ModelSource(config=TINY).load().state_dict()["model.embed_tokens.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_model_is_loaded_from_a_path_with_overrides_and_dtype(tmp_path):
    model = ModelSource(config=TINY, dtype="bfloat16").load()
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "m")
    again = ModelSource("m", dtype="float32").resolve(tmp_path)
    assert again.path == str(tmp_path / "m")
    assert again.load().dtype == torch.float32
    classifier = ModelSource(again.path, auto_class="AutoModelForSequenceClassification", overrides={"num_labels": 3})
    assert classifier.load().score.out_features == 3
    skeleton = classifier.skeleton()
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert skeleton.score.out_features == 3
    assert {n: p.shape for n, p in ModelSource(config=TINY).skeleton().named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected exactly one of the two, got neither"),
        ({"path": "x", "config": TINY}, "expected exactly one of the two, got both"),
        ({"config": {"hidden_size": 8}}, "config: model_type is missing"),
        ({"config": "llama"}, "config: expected a mapping"),
        ({"path": 3}, "path: expected a folder"),
        ({"config": TINY, "overrides": {"num_labels": 2}}, "write these keys in config itself"),
        ({"path": "x", "auto_class": "Trainer"}, "auto_class: expected a class such as"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ModelSource(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": TINY, "auto_class": "AutoModelForCasualLM"}, "did you mean 'AutoModelForCausalLM'"),
        ({"config": {**TINY, "hiden_size": 8}}, "LlamaConfig has no 'hiden_size'; did you mean 'hidden_size'"),
        ({"config": {**TINY, "model_type": "lama"}}, "unknown model_type 'lama'; did you mean 'llama'"),
        ({"config": TINY, "dtype": "float33"}, "dtype: expected float32"),
    ],
)
def test_unknown_names_are_refused_when_the_model_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        ModelSource(**options).load()


def test_overrides_that_the_config_lacks_are_refused(tmp_path):
    ModelSource(config=TINY).load().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="overrides: LlamaConfig has no 'num_label'; did you mean 'num_labels'"):
        ModelSource(str(tmp_path), overrides={"num_label": 2}).skeleton()
