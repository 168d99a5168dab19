"""The arms of distill_step that other libraries run, as their documentation shows. They use none of our code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import _distill_task as shared
from benchmarks._turns import Turns
from benchmarks.common import arguments


class _Ticking:
    """Counts the steps of TextBrewer, whose loop has no callback: a request for the next batch ends a step."""

    def __init__(self, loader: torch.utils.data.DataLoader, turns: Turns) -> None:
        self.loader, self.turns, self.started = loader, turns, False

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            if self.started:
                self.turns.tick()
            self.started = True
            batch = next(batches, None)
            if batch is None:
                self.started = False  # the next pass asks again for the batch that this one did not have
                return
            yield batch


def _textbrewer(matches: list[dict], options: argparse.Namespace, turns: Turns, out: str) -> None:
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    # Only the eager implementation gives attention maps.
    whole = bool(matches)
    student, teacher = shared.pair("bert", **({"attn_implementation": "eager"} if whole else {}))

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        found = {"logits": (outputs.logits,), "inputs_mask": batch["attention_mask"]}
        return found | ({"hidden": outputs.hidden_states, "attention": outputs.attentions} if whole else {})

    distiller = GeneralDistiller(
        train_config=TrainingConfig(output_dir=out, device="cpu", ckpt_steps=shared.STEPS),
        distill_config=DistillationConfig(temperature=1, intermediate_matches=matches),
        model_T=teacher,
        model_S=student,
        adaptor_T=adaptor,
        adaptor_S=adaptor,
    )
    more = {"output_hidden_states": True, "output_attentions": True} if whole else {}
    batches = _Ticking(shared.batches("bert", options, labels=False), turns)
    adamw = shared.optimizer(student)
    with distiller:
        turns.begin()
        distiller.train(adamw, batches, num_steps=shared.STEPS, **more)


def textbrewer_logit(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    _textbrewer([], options, turns, out)


def textbrewer_hidden_attention(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Compare hidden states and attention probabilities (ours: scores before the softmax) of all layers, and logits."""
    hidden = [(s, t, "hidden", "hidden_mse") for s, t in shared.HIDDEN]
    maps = [(s - 1, t - 1, "attention", "attention_mse") for s, t in shared.ATTENTION]
    keys = ("layer_S", "layer_T", "feature", "loss")
    _textbrewer([dict(zip(keys, m, strict=True), weight=1) for m in hidden + maps], options, turns, out)


def modelopt_logit(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    from modelopt.torch.distill.plugins.huggingface import KDTrainer

    student, teacher = shared.pair(task)
    KDTrainer(
        student,
        arguments(out, **shared.settings(options)),
        train_dataset=shared.rows(task, options.length),
        callbacks=[shared.Ticks(turns)],
        distill_args={"teacher_model": teacher, "temperature": 1.0},
    ).train()


def _trl_arguments(config: type, out: str, options: argparse.Namespace, **changes: Any) -> Any:
    """Turn off bf16 and checkpointing, which TRL turns on by itself, so that all arms compute the same."""
    plain = {key: value for key, value in arguments(out).to_dict().items() if key in _PLAIN}
    plain |= {"bf16": False, "gradient_checkpointing": False, "max_length": options.length}
    return config(out, **plain, **shared.settings(options), **changes)


_PLAIN = ("logging_strategy", "save_strategy", "report_to", "disable_tqdm", "optim", "use_cpu")


def trl_gkd_logit(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Use the forward KL (beta=0) without generation (lmbda=0)."""
    from transformers import default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = shared.pair(task)
    GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=_trl_arguments(GKDConfig, out, options, lmbda=0.0, beta=0.0, temperature=1.0),
        train_dataset=shared.rows(task, options.length),
        data_collator=default_data_collator,
        processing_class=shared.tokenizer(),
        callbacks=[shared.Ticks(turns)],
    ).train()


def distillkit_logit(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    from distillkit.configuration import DistillationRunConfig
    from distillkit.signals import OnlineSignalSource
    from distillkit.trainer import DistillationTrainer
    from trl import SFTConfig

    student, teacher = shared.pair(task)
    names = {
        "model": "student",
        "teacher": {"kind": "hf", "path": "teacher"},
        "output_path": out,
        "sequence_length": options.length,
    }
    data = {"train_dataset": {"disk_path": "rows"}}
    losses = [{"function": "kl", "weight": 1.0, "temperature": 1.0}]
    DistillationTrainer(
        student,
        DistillationRunConfig(**names, dataset=data, loss_functions=losses),
        OnlineSignalSource(teacher, vocab_size=shared.VOCAB),
        shared.VOCAB,
        args=_trl_arguments(SFTConfig, out, options),
        train_dataset=shared.rows(task, options.length),
        processing_class=shared.tokenizer(),
        callbacks=[shared.Ticks(turns)],
    ).train()


ARMS: dict[str, Callable[[str, argparse.Namespace, Turns, str], None]] = {
    "textbrewer_logit": textbrewer_logit,
    "textbrewer_hidden_attention": textbrewer_hidden_attention,
    "modelopt_logit": modelopt_logit,
    "trl_gkd_logit": trl_gkd_logit,
    "distillkit_logit": distillkit_logit,
}
# The package whose presence says which Python can run the arm.
PACKAGES = {name: name.split("_")[0] for name in ARMS} | {"trl_gkd_logit": "trl.experimental.gkd"}
