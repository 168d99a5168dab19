"""Run losses on hidden states and attention outside a trainer, and find what a model computes in another way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers as tf

from hf_stages.core.batch import Batch
from hf_stages.losses import Loss
from hf_stages.losses.objective.stage_losses import StageLosses
from hf_stages.losses.objective.terms import terms_of
from hf_stages.models.model_inputs import model_inputs
from hf_stages.teachers.live import LiveTeacher
from tests.support import tiny

LENGTHS = (11, 4, 7)


def text(*, left: bool = False, padded: bool = True, masked: bool = True, seed: int = 5) -> dict[str, torch.Tensor]:
    """Three rows of 11, 4 and 7 tokens; with a mask or, for whole rows, without."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, tiny.VOCAB, (3, max(LENGTHS)), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(LENGTHS if padded else ()):
        hidden = slice(0, max(LENGTHS) - length) if left else slice(length, None)
        ids[row, hidden], mask[row, hidden] = 0, 0
    return {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}


def images() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(6))}


def pairs_of_text() -> dict[str, torch.Tensor]:
    labels = torch.randint(2, tiny.VOCAB, (3, 6), generator=torch.Generator().manual_seed(7))
    labels[1, 3:] = -100
    return {**text(), "labels": labels}


def sliding(**changes: Any) -> Any:
    """Mistral whose window of 4 is shorter than the rows."""
    return _built(tf.MistralForCausalLM, tf.MistralConfig, {"sliding_window": 4}, changes)


def capped(**changes: Any) -> Any:
    """Gemma 2: scores and logits squashed hard, one layer of two in a window."""
    own = {"attn_logit_softcapping": 0.05, "final_logit_softcapping": 0.1, "head_dim": 8, "sliding_window": 4}
    return _built(tf.Gemma2ForCausalLM, tf.Gemma2Config, own, changes)


def cohere(**changes: Any) -> Any:
    return _built(tf.CohereForCausalLM, tf.CohereConfig, {"logit_scale": 0.25}, changes)


def granite(**changes: Any) -> Any:
    return _built(tf.GraniteForCausalLM, tf.GraniteConfig, {"logits_scaling": 4.0}, changes)


def t5(seed: int = 0, num_hidden_layers: int = 2, **changes: Any) -> Any:
    return tiny.t5(
        seed, num_layers=num_hidden_layers, num_decoder_layers=num_hidden_layers, dropout_rate=0.0, **changes
    )


def bert(seed: int = 0, **changes: Any) -> Any:
    return tiny.bert(seed, **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **changes})


def _built(kind: Any, config: Any, own: dict[str, Any], changes: dict[str, Any]) -> Any:
    seed = changes.pop("seed", 0)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    base = {key: getattr(tiny.llama_config(), key) for key in (*keys, "num_key_value_heads", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config(**{**base, **own, **changes}))


def two(build: Callable[..., Any], **changes: Any) -> tuple[Any, Any]:
    """A student of two layers and another, deeper model of four to learn from, with attention that is not flat."""
    student, teacher = build(seed=0), build(seed=1, num_hidden_layers=4, **changes)
    for model in (student, teacher):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if re.search(r"\b(q|k|q_proj|k_proj|query|key)\.weight$", name):
                    parameter.mul_(4.0)
    return student, teacher


@contextmanager
def installed(loss: Loss, student: Any, teacher: Any, *, defer: bool = True) -> Iterator[StageLosses]:
    terms = terms_of(loss, student, teacher)
    needs = frozenset().union(*(term.loss.teacher_needs for term in terms))
    losses = StageLosses(terms, student, LiveTeacher(teacher, needs, torch.device("cpu")), defer_head=defer)
    try:
        yield losses
    finally:
        losses.remove()


def value(loss: Loss, student: Any, teacher: Any, batch: Mapping[str, Any], *, defer: bool = True) -> torch.Tensor:
    """Return the mean that a stage would report, with its graph."""
    with installed(loss, student, teacher, defer=defer) as losses:
        mine, theirs = losses.signals(student, Batch(batch), 0.0)
        own = losses.terms[0].loss
        return own(mine, theirs, batch, 0.0).sum() / own.items(batch)


# ---- the same, found in another way ---------------------------------------------------------------------------------


def scores_of(model: Any, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """What each attention of an eager run puts into its softmax, in order, hidden places at -1e30 or less."""
    found = []
    softmax = torch.nn.functional.softmax

    def noting(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found.append(values.float())
        return softmax(values, *args, **kwargs)

    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with mock.patch.object(torch.nn.functional, "softmax", noting):
            model(**model_inputs(model, batch))
    finally:
        model.set_attn_implementation(before)
    return found


def hidden_of(model: Any, batch: Mapping[str, Any], norm: str | None = None, part: str = "") -> list[torch.Tensor]:
    """``hidden_states`` without the final norm, which transformers applies to the last of them."""
    inner: Any = torch.nn.Identity()
    if norm is not None:
        parent, name = model.get_submodule(norm.rpartition(".")[0]), norm.rpartition(".")[2]
        inner = getattr(parent, name)
        setattr(parent, name, torch.nn.Identity())
    try:
        outputs = model(**batch, output_hidden_states=True)
    finally:
        if norm is not None:
            setattr(parent, name, inner)
    return list(outputs[f"{part}hidden_states"])
