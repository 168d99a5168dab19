"""Kinds of PEFT adapters, and trainers and readers for models that have them."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from tests.support import tiny

peft = pytest.importorskip("peft")

TASK = "CAUSAL_LM"
LINEAR = {"target_modules": ["q_proj", "v_proj"], "task_type": TASK}
PROMPT = {"num_virtual_tokens": 2, "task_type": TASK}


def lora(**options):
    return lambda: peft.LoraConfig(**{"r": 2, **LINEAR, **options})


def kind(name, **options):
    return lambda: getattr(peft, name)(**options)


# (the adapter's config, whether stock transformers loads the stage's folder)
KINDS = {
    "lora": (lora(), True),
    "rslora": (lora(use_rslora=True), True),
    "dora": (lora(use_dora=True), True),
    "pissa": (lora(init_lora_weights="pissa"), True),
    "olora": (lora(init_lora_weights="olora"), True),
    "ia3": (kind("IA3Config", **LINEAR, feedforward_modules=[]), True),
    "loha": (kind("LoHaConfig", r=2, **LINEAR), True),
    "adalora": (kind("AdaLoraConfig", init_r=3, target_r=2, total_step=10, **LINEAR), False),
    "vera": (kind("VeraConfig", r=4, **LINEAR), False),
    "prompt": (kind("PromptTuningConfig", **PROMPT), False),
    "prefix": (kind("PrefixTuningConfig", **PROMPT), False),
    "layer-norms": (kind("LNTuningConfig", target_modules=["input_layernorm"], task_type=TASK), True),
    "tokens": (kind("TrainableTokensConfig", token_indices=[1, 3], task_type=TASK), True),
    "lora-and-tokens": (lora(trainable_token_indices=[1, 3]), True),
}
MORE = {
    # What a prompt's encoder says is stored, not the encoder; shared vectors; parameters in place of layers; other
    # starts.
    "prefix-encoder": (kind("PrefixTuningConfig", prefix_projection=True, encoder_hidden_size=8, **PROMPT), False),
    "vb-lora": (kind("VBLoRAConfig", r=2, num_vectors=4, vector_length=4, topk=2, **LINEAR), False),
    "p-tuning": (kind("PromptEncoderConfig", encoder_hidden_size=8, **PROMPT), False),
    "lora-on-parameters": (lora(target_modules=[], target_parameters=["q_proj.weight"]), True),
    "lora-and-head": (lora(modules_to_save=["embed_tokens", "lm_head"]), True),
    "oft": (kind("OFTConfig", oft_block_size=4, r=0, **LINEAR), True),
    "lokr": (kind("LoKrConfig", r=2, **LINEAR), True),
    "fourier": (kind("FourierFTConfig", n_frequency=10, **LINEAR), True),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in [*MORE][2:]]
INPUT = torch.randint(3, tiny.VOCAB, (2, 7), generator=torch.Generator().manual_seed(3))
INPUT[0, :2] = torch.tensor([1, 3])


class Cut(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Stop(Cut):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def adapted(config, name="default", **changes):
    torch.manual_seed(1)
    return peft.get_peft_model(tiny.llama(**changes), config, adapter_name=name)


def trainer_of(out, model, stages=None, callbacks=(), data=None, **args):
    args = TrainingArguments(
        str(out), report_to="none", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=4,
        **{"learning_rate": 1e-2, "save_strategy": "no", **args},
    )  # fmt: skip
    stages = stages or [Stage("a", "2 steps"), Stage("b", "3 steps")]
    data = {"train_dataset": data or tiny.lm_data(), "eval_dataset": (data or tiny.lm_data()).select(range(4))}
    return StagedTrainer(model, args, stages=stages, callbacks=list(callbacks), **data)


def logits(model, inputs=None):
    model.eval()
    with torch.no_grad():
        return model(**(inputs or {"input_ids": INPUT})).logits


def stock(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def by_peft(folder):
    """What PEFT makes of a folder whose base and adapter lie apart."""
    return peft.PeftModel.from_pretrained(stock(folder / "base"), folder / "adapter")


def assert_stock(folder, wanted, whole):
    """Stock gives the model or stops; where it stops, PEFT gives the model."""
    if whole:
        torch.testing.assert_close(logits(stock(folder)), wanted, rtol=0, atol=1e-6)
        return
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        stock(folder)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        type(tiny.llama()).from_pretrained(folder)
    torch.testing.assert_close(logits(by_peft(folder)), wanted, rtol=0, atol=1e-5)
