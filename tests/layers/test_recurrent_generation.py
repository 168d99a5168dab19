"""Stock ``generate()`` and ``AutoModel`` on a model with a recurrent core."""

import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from hf_stages.layers import at_depth, find_recurrence, set_depth
from hf_stages.transforms import SetTask
from tests.support import tiny
from tests.support.recurrent import looped, tokens

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def build(kind: str):
    if kind == "llama":
        return tiny.llama(num_hidden_layers=4)
    config, model = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[kind]
    return model(config(**{**tiny.LLAMA_SIZES, "num_hidden_layers": 4, "head_dim": 8}, **SPECIAL))


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_cache_changes_no_logits_at_any_depth(kind, norm):
    model, ids = looped(build(kind), norm=norm), tokens()
    for depth in (1, 3, 6):
        with at_depth(model, depth), torch.no_grad():
            whole = model(ids, use_cache=False).logits
            cache = model(ids[:, :4], use_cache=True).past_key_values
            steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(4, ids.shape[1])]
            torch.testing.assert_close(torch.cat(steps, 1), whole[:, 4:], atol=1e-5, rtol=1e-4)
            assert len(cache.layers) == model.config.num_hidden_layers == 4 + 2 * (depth - 1)
            assert {layer.get_seq_length() for layer in cache.layers} == {ids.shape[1]}


@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"num_beams": 3}, {"num_beams": 3, "cache_implementation": "static"}],
    ids=["greedy", "static", "beams", "static beams"],
)
@pytest.mark.parametrize("depth", [1, 5])
def test_generate_gives_what_it_gives_without_a_cache(depth, options):
    model, ids = looped(norm="sandwich"), tokens(3, 7)
    without = {key: value for key, value in options.items() if key != "cache_implementation"}
    with at_depth(model, depth):
        found = model.generate(ids, **GREEDY, **options)
        assert torch.equal(found, model.generate(ids, **GREEDY, **without, use_cache=False))


def test_generate_gives_what_it_gives_with_guessed_tokens():
    model, ids = looped(), tokens(1, 12)
    assert torch.equal(model.generate(ids, **GREEDY, prompt_lookup_num_tokens=2), model.generate(ids, **GREEDY))


def test_padding_changes_no_generated_token():
    model, ids = looped(), tokens(3, 8)
    mask = torch.ones_like(ids)
    for row in range(3):
        mask[row, :row], ids[row, :row] = 0, 0
    together = model.generate(ids, attention_mask=mask, **GREEDY)[:, 8:]
    alone = [model.generate(ids[row : row + 1, row:], **GREEDY)[0, 8 - row :] for row in range(3)]
    assert torch.equal(together, torch.stack(alone))


def test_a_model_saved_at_a_depth_loads_at_that_depth_and_gives_the_same_logits(tmp_path):
    model, ids = looped(norm="sandwich"), tokens()
    set_depth(model, 7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert find_recurrence(loaded).depth == 7
    assert type(loaded) is LlamaForCausalLM
    for depth in (1, 7, 9):
        with at_depth(model, depth), at_depth(loaded, depth):
            assert torch.equal(loaded(ids).logits, model(ids).logits)
            assert torch.equal(loaded.generate(ids, **GREEDY), model.generate(ids, **GREEDY))


def test_stock_transformers_refuses_the_folder(tmp_path):
    looped().save_pretrained(tmp_path)
    script = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "hf_stages" in done.stderr
    with pytest.raises(Exception, match="load it with `import hf_stages`"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_a_cache_of_another_depth_is_refused():
    model, ids = looped(), tokens()
    with at_depth(model, 5):
        filled = model(ids, use_cache=True).past_key_values
    for depth in (2, 4):
        with at_depth(model, depth), pytest.raises(ValueError, match="filled at 5 cycles, and the model now runs"):
            model(ids[:, :1], past_key_values=filled)
    with at_depth(model, 2):
        small = [StaticCache(config=model.config, max_cache_len=16), DynamicCache(config=model.config)]
    for cache in small:
        with at_depth(model, 3), pytest.raises(ValueError, match="slots for 6 layers, and 3 cycles need 8"):
            model(ids, past_key_values=cache)


def test_hidden_states_and_attentions_are_those_of_every_cycle():
    model = looped(norm="sandwich")
    model.set_attn_implementation("eager")
    with at_depth(model, 3):
        found = model(tokens(), output_hidden_states=True, output_attentions=True)
        assert len(found.hidden_states) == model.config.num_hidden_layers + 1 == 9
    assert len(found.attentions) == 8


def test_drafts_by_an_early_exit_are_refused_and_spoil_no_later_generation():
    model, ids = looped(), tokens(1)
    expected = model.generate(ids, **GREEDY)
    with pytest.raises(ValueError, match="assistant_early_exit: a model with a recurrent core cannot draft"):
        model.generate(ids, **GREEDY, assistant_early_exit=2)
    assert torch.equal(model.generate(ids, **GREEDY), expected)


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
def test_a_model_is_loaded_without_its_head_and_then_no_token_leaves_by_its_predictions(kind, tmp_path, caplog):
    model, ids = looped(tiny.llama(num_hidden_layers=4, pad_token_id=0), exit="kl"), tokens()
    model.save_pretrained(tmp_path)
    with caplog.at_level("WARNING", logger="hf_stages"):
        found = kind.from_pretrained(tmp_path)
    assert "exit='kl' is off" in caplog.text
    assert find_recurrence(found).exit is None
    with at_depth(model, 4):  # where every token runs all cycles
        states = model.model(ids).last_hidden_state
    assert torch.allclose(found.base_model(ids).last_hidden_state, states, atol=1e-6)
    assert find_recurrence(AutoModelForCausalLM.from_pretrained(tmp_path)).exit.kind == "kl"


def test_another_task_is_set_on_a_model_whose_tokens_leave_by_its_predictions():
    model = SetTask("AutoModelForSequenceClassification", num_labels=2)(
        looped(tiny.llama(num_hidden_layers=4, pad_token_id=0), exit="kl")
    )
    assert find_recurrence(model).exit is None
    assert model.eval()(tokens()).logits.shape == (2, 2)
