from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass

import pytest
import torch
import transformers as tf

from hf_stages.layers.own_type import mark_own_type, record_of, unmarked, with_mark
from tests.support import tiny


@dataclass(frozen=True)
class Twice:
    """Stands for a transform."""

    names: tuple[str, ...] = ()
    rate: float = 0.5


def marked(kind="llama"):
    model = getattr(tiny, kind)()
    mark_own_type(model, Twice(("a", "b")))
    return model


PART = {"use": "tests.layers.test_own_type:Twice", "names": ["a", "b"]}


def test_in_memory_the_config_is_of_the_architectures_class():
    plain, config = tiny.llama().config, marked().config
    assert isinstance(config, tf.LlamaConfig)
    assert config.model_type == "llama"
    assert record_of(config) == {"base_model_type": "llama", "transforms": [PART]}
    assert record_of(plain) is None
    assert {**plain.to_dict(), "hf_stages": record_of(config)} == config.to_dict()
    assert config.num_hidden_layers == 2
    assert config.hidden_size == 32


def test_on_disk_the_model_type_is_our_own(tmp_path):
    config = marked().config
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "hf_stages"
    assert written["hf_stages"] == {**record_of(config), "instead": {"initializer_range": 0.02}}
    for kind in (tf.AutoConfig, type(config)):
        read = kind.from_pretrained(tmp_path)
        assert type(read) is type(config)
        assert read.to_dict() == {**config.to_dict(), "_name_or_path": read.name_or_path}
    assert tf.AutoConfig.from_pretrained(tmp_path, hidden_act="gelu").hidden_act == "gelu"


def test_the_class_alone_refuses_it_and_says_how_to_load_it(tmp_path):
    # A config for almost every field, and one that checks none of those that are tried.
    for config in (marked().config, marked("t5").config, tf.CLIPConfig(), tf.DetrConfig()):
        if record_of(config) is None:
            config = with_mark(_recorded(config))
        config.save_pretrained(tmp_path)
        with pytest.raises(Exception, match="made with hf_stages: load it with `import hf_stages` and AutoModel"):
            type(unmarked(config)).from_pretrained(tmp_path)
        assert tf.AutoConfig.from_pretrained(tmp_path).to_json_string() == config.to_json_string()


def _recorded(config):
    config.hf_stages = {"base_model_type": config.model_type, "transforms": []}
    return config


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_and_pickles_keep_the_mark(copied):
    config = marked().config
    config._attn_implementation = "eager"
    twin = copied(config)
    assert type(twin) is type(config)
    assert vars(twin) == vars(config)
    assert twin is not config
    twin.use_cache = not config.use_cache
    assert twin.use_cache != config.use_cache
    model = marked()
    assert type(copied(model).config) is type(config)


def test_every_model_inside_is_marked_and_a_second_mark_adds():
    model = marked("t5")
    mark_own_type(model, Twice(rate=2.0))
    for config in (model.config, model.encoder.config, model.decoder.config):
        assert [part.get("rate") for part in record_of(config)["transforms"]] == [None, 2.0]
    assert model.encoder.config is not model.config
    assert marked().model.config is not tiny.llama().config


def test_unmarked_gives_a_copy_without_the_mark():
    config = marked().config
    plain = unmarked(config)
    assert type(plain) is tf.LlamaConfig
    assert plain.to_dict() == tiny.llama().config.to_dict()
    assert record_of(config) is not None
    assert type(with_mark(tf.LlamaConfig.from_dict(config.to_dict()))) is type(config)


def test_a_model_without_a_config_is_left_alone():
    model = torch.nn.Linear(2, 2)
    mark_own_type(model, Twice())
    assert not hasattr(model, "config")
